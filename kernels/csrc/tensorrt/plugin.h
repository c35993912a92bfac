// What every TensorRT plugin of this library shares: all of IPluginV3 but its own shapes, types and kernels; one log;
// and the kernels of the device that is current.
//
// One source for TensorRT 10.3 to 11.x. The library links to no TensorRT: it is loaded with
// IPluginRegistry::loadLibrary, trtexec --staticPlugins / --dynamicPlugins, or load_library in Python.

#ifndef DPM_TENSORRT_PLUGIN_H
#define DPM_TENSORRT_PLUGIN_H

#include <memory>
#include <new>

#include <NvInferRuntime.h>

#include "dpm_kernels.h"

namespace dpm_edge {

constexpr char const *VERSION = "1", *NAMESPACE = "dpm_edge";

// Report an error in TensorRT's log and return −1; plugins may not throw.
int32_t fail(char const *plugin, char const *what, char const *why) noexcept;

// Open the kernels on the current device, once; 0, or −1 after a report.
int32_t openKernels(char const *plugin, std::shared_ptr<dpm_kernels> &kernels) noexcept;

// The creators of the two plugins, for getCreators.
nvinfer1::IPluginCreatorInterface *maskedSimilarityCreator();
nvinfer1::IPluginCreatorInterface *maskHeadCreator();

// A plugin of one output. Self names itself: NAME, INPUTS, OUTPUT (the output's type), and can be copied.
template <typename Self>
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
  public:
    nvinfer1::IPluginCapability *getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore *>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild *>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime *>(this);
        }
        return nullptr;
    }
    nvinfer1::IPluginV3 *clone() noexcept override { return new (std::nothrow) Self(static_cast<Self const &>(*this)); }

    char const *getPluginName() const noexcept override { return Self::NAME; }
    char const *getPluginVersion() const noexcept override { return VERSION; }
    char const *getPluginNamespace() const noexcept override { return NAMESPACE; }

    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t getOutputDataTypes(nvinfer1::DataType *types, int32_t outputs, nvinfer1::DataType const *,
                               int32_t inputs) const noexcept override {
        if (checkNumbers(inputs, outputs)) return -1;
        types[0] = Self::OUTPUT;
        return 0;
    }

    nvinfer1::IPluginV3 *attachToContext(nvinfer1::IPluginResourceContext *) noexcept override { return clone(); }
    nvinfer1::PluginFieldCollection const *getFieldsToSerialize() noexcept override { return &fields; }

  protected:
    int32_t checkNumbers(int32_t inputs, int32_t outputs) const noexcept {
        if (inputs == Self::INPUTS && outputs == 1) return 0;
        return fail(Self::NAME, "inputs", "expected one output and the inputs of its documentation, got other numbers");
    }
    int32_t open() const noexcept { return openKernels(Self::NAME, kernels); }

    mutable std::shared_ptr<dpm_kernels> kernels; // opened at first need, on the device that is current then
    nvinfer1::PluginFieldCollection fields{};     // what goes into a plan
};

// The creator of Self: Self::create(fields) makes a plugin, or reports and returns null.
template <typename Self> class Creator : public nvinfer1::IPluginCreatorV3One {
  public:
    explicit Creator(nvinfer1::PluginFieldCollection const &names = {}) noexcept : fields(names) {}
    nvinfer1::IPluginV3 *createPlugin(char const *, nvinfer1::PluginFieldCollection const *given,
                                      nvinfer1::TensorRTPhase) noexcept override {
        return Self::create(given);
    }
    nvinfer1::PluginFieldCollection const *getFieldNames() noexcept override { return &fields; }
    char const *getPluginName() const noexcept override { return Self::NAME; }
    char const *getPluginVersion() const noexcept override { return VERSION; }
    char const *getPluginNamespace() const noexcept override { return NAMESPACE; }

  private:
    nvinfer1::PluginFieldCollection fields;
};

} // namespace dpm_edge

#endif
