// The log of the plugins, their kernels, and what IPluginRegistry::loadLibrary looks for in this library.

#include "plugin.h"

#include <mutex>
#include <new>
#include <string>

namespace dpm_edge {

namespace {

nvinfer1::ILogger *log = nullptr;
std::mutex logLock;

} // namespace

int32_t fail(char const *plugin, char const *what, char const *why) noexcept {
    std::lock_guard<std::mutex> hold(logLock);
    if (log) {
        try {
            log->log(nvinfer1::ILogger::Severity::kERROR, (std::string(plugin) + ": " + what + ": " + why).c_str());
        } catch (...) { // out of host memory: the status still says that it failed
        }
    }
    return -1;
}

int32_t openKernels(char const *plugin, std::shared_ptr<dpm_kernels> &kernels) noexcept {
    if (kernels) return 0;
    dpm_kernels *opened = nullptr;
    if (dpm_open(DPM_CURRENT_DEVICE, &opened)) return fail(plugin, "opening the kernels", dpm_last_error());
    try {
        kernels.reset(opened, dpm_close);
    } catch (std::bad_alloc const &) { // reset has closed it
        return fail(plugin, "opening the kernels", "out of host memory");
    }
    return 0;
}

} // namespace dpm_edge

extern "C" DPM_API void setLoggerFinder(nvinfer1::ILoggerFinder *finder) {
    if (!finder) return;
    std::lock_guard<std::mutex> hold(dpm_edge::logLock);
    dpm_edge::log = finder->findLogger();
}

extern "C" DPM_API nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count) {
    static nvinfer1::IPluginCreatorInterface *const creators[] = {dpm_edge::maskedSimilarityCreator(),
                                                                  dpm_edge::maskHeadCreator()};
    count = 2;
    return creators;
}
