#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[512] = "no error";

const char *dpm_last_error(void) { return last_error; }

dpm_status dpm_fail(dpm_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

dpm_status dpm_check(const dpm_driver *driver, int result, const char *call) {
    const char *words = NULL;
    if (result == 0) return DPM_OK;
    driver->cuGetErrorString(result, &words);
    return dpm_fail(DPM_CUDA_ERROR, "%s: %s (CUDA error %d)", call, words ? words : "unknown error", result);
}

static dpm_driver driver;
static char why_not[256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_driver(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(why_not, sizeof why_not, "the NVIDIA driver is not installed here: %s", dlerror());
        return;
    }
#define OPEN(name, ...)                                                                                                \
    *(void **)&driver.name = dlsym(library, #name);                                                                    \
    if (!driver.name && !why_not[0])                                                                                   \
        snprintf(why_not, sizeof why_not, "libcuda.so.1 has no %s; CUDA 12 or newer is needed", #name);
    DPM_DRIVER_CALLS(OPEN)
#undef OPEN
}

const dpm_driver *dpm_driver_get(void) {
    pthread_once(&once, open_driver);
    if (!why_not[0]) return &driver;
    dpm_fail(DPM_NO_DRIVER, "%s", why_not);
    return NULL;
}
