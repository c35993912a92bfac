/* Every embedded kernel, launched once on each GPU that it was compiled for, against the stand-in driver. */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../dpm_kernels.h"
#include "../images.h"
#include "stub_driver.h"

int main(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    stub_record *record = driver ? dlsym(driver, "stub") : NULL;
    int failures = 0;
    if (!record) return fprintf(stderr, "the stand-in driver is not libcuda.so.1 here: %s\n", dlerror()), 2;
    for (size_t i = 0; i < dpm_image_count; ++i) {
        const dpm_image *image = &dpm_images[i];
        dpm_value values[2 * DPM_MOST_PARAMETERS];
        size_t count = 0;
        char capability[8];
        dpm_kernels *kernels;
        stub_launch *launch = &record->launches[record->launched % STUB_KEPT];
        for (int p = 0; p < image->parameter_count; ++p)
            values[count++] = (dpm_value){image->parameters[p].name, 1024, 0.5f};
        for (int s = 0; s < image->size_count; ++s) values[count++] = (dpm_value){image->sizes[s], 1024, 0};
        snprintf(capability, sizeof capability, "%d", image->sm);
        setenv("STUB_CAPABILITY", capability, 1);
        if (dpm_open(0, &kernels) || dpm_launch(kernels, image->variant, values, count, NULL) ||
            launch->image != image->cubin || memcmp(image->cubin, "\177ELF", 4) || launch->block[0] != image->threads || launch->count != image->parameter_count + 2 ||
            launch->parameters[image->parameter_count] || launch->parameters[image->parameter_count + 1]) {
            ++failures;
            fprintf(stderr, "%s on sm_%d: %s\n", image->variant, image->sm, dpm_last_error());
        }
        if (image->ptx && !strstr((const char *)image->ptx, ".target sm_80\n")) {
            ++failures;
            fprintf(stderr, "%s: its PTX is not portable\n", image->variant);
        }
        dpm_close(kernels);
    }
    printf("%zu images launched, %d failures\n", dpm_image_count, failures);
    return failures != 0 || record->launched != (int)dpm_image_count;
}
