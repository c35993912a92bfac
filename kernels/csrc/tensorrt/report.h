// What the plugins of this library share: one log, and the kernels of the device that is current.

#ifndef DPM_TENSORRT_REPORT_H
#define DPM_TENSORRT_REPORT_H

#include <memory>

#include <NvInferRuntime.h>

#include "dpm_kernels.h"

namespace dpm_edge {

constexpr char const *VERSION = "1", *NAMESPACE = "dpm_edge";

// TensorRT's log, from setLoggerFinder; null before.
void setLogger(nvinfer1::ILogger *logger) noexcept;

// Report an error in TensorRT's log and return −1; plugins may not throw.
int32_t fail(char const *plugin, char const *what, char const *why) noexcept;

// Open the kernels on the current device, once; 0, or −1 after a report.
int32_t openKernels(char const *plugin, std::shared_ptr<dpm_kernels> &kernels) noexcept;

} // namespace dpm_edge

#endif
