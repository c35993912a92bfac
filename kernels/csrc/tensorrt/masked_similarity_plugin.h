// TensorRT plugin: masked similarity of queries to targets (closed-set identification), over libdpm_kernels.
//
// ONNX node DpmMaskedSimilarity, domain dpm_edge, plugin_version "1", plugin_namespace "dpm_edge":
//     inputs   query (B, D) float32, mask (B, D) float32, targets (N, D) float32 or float16; D a multiple of 128
//     output   similarity (B, N) float32, as kernels/masked_distance/contract.py defines it
//
// One source for TensorRT 10.3 to 11.x (IPluginV3). The library links to no TensorRT: it is loaded with
// IPluginRegistry::loadLibrary, trtexec --staticPlugins / --dynamicPlugins, or load_library in Python.

#ifndef DPM_MASKED_SIMILARITY_PLUGIN_H
#define DPM_MASKED_SIMILARITY_PLUGIN_H

#include <memory>

#include <NvInferRuntime.h>

#include "dpm_kernels.h"

namespace dpm_edge {

class MaskedSimilarityPlugin : public nvinfer1::IPluginV3,
                               public nvinfer1::IPluginV3OneCore,
                               public nvinfer1::IPluginV3OneBuild,
                               public nvinfer1::IPluginV3OneRuntime {
  public:
    // IPluginV3
    nvinfer1::IPluginCapability *getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3 *clone() noexcept override;

    // IPluginV3OneCore
    char const *getPluginName() const noexcept override;
    char const *getPluginVersion() const noexcept override;
    char const *getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const *in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const *out, int32_t outputs) noexcept override;
    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const *tensors, int32_t inputs,
                                   int32_t outputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType *types, int32_t outputs, nvinfer1::DataType const *in,
                               int32_t inputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const *in, int32_t inputs, nvinfer1::DimsExprs const *shapes,
                            int32_t shapeInputs, nvinfer1::DimsExprs *out, int32_t outputs,
                            nvinfer1::IExprBuilder &builder) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const *in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const *out, int32_t outputs) const noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const *in, int32_t inputs, nvinfer1::PluginTensorDesc const *out,
                          int32_t outputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const *in, nvinfer1::PluginTensorDesc const *out,
                    void const *const *inputs, void *const *outputs, void *workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3 *attachToContext(nvinfer1::IPluginResourceContext *context) noexcept override;
    nvinfer1::PluginFieldCollection const *getFieldsToSerialize() noexcept override;

  private:
    std::shared_ptr<dpm_kernels> kernels; // opened at the first shape, on the device that is current then
    nvinfer1::PluginFieldCollection fields{};
};

class MaskedSimilarityCreator : public nvinfer1::IPluginCreatorV3One {
  public:
    nvinfer1::IPluginV3 *createPlugin(char const *name, nvinfer1::PluginFieldCollection const *fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const *getFieldNames() noexcept override;
    char const *getPluginName() const noexcept override;
    char const *getPluginVersion() const noexcept override;
    char const *getPluginNamespace() const noexcept override;

  private:
    nvinfer1::PluginFieldCollection fields{};
};

} // namespace dpm_edge

#endif
