// TensorRT plugin: the mask generator (HMG) of the paper's form, fused, over libdpm_kernels.
//
// ONNX node DpmMaskHead, domain dpm_edge, plugin_version "1", plugin_namespace "dpm_edge", all tensors float16:
//     fields   height, width: the grid of patches, each at least 4 (integers)
//     inputs   tokens of four blocks (B, 1 + height·width, d), cls first; d a multiple of 64
//              three times weight (9, C, N) and bias (N): 4d → 2d → d → d channels; then weight (d, d), bias (d),
//              packed as kernels/mask_head/pack.py packs them
//     output   mask (B, d), as kernels/mask_head/contract.py defines it

#ifndef DPM_MASK_HEAD_PLUGIN_H
#define DPM_MASK_HEAD_PLUGIN_H

#include <array>
#include <memory>

#include <NvInferRuntime.h>

#include "dpm_kernels.h"

namespace dpm_edge {

class MaskHeadPlugin : public nvinfer1::IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public nvinfer1::IPluginV3OneBuild,
                       public nvinfer1::IPluginV3OneRuntime {
  public:
    MaskHeadPlugin(int32_t height, int32_t width) noexcept;
    MaskHeadPlugin(MaskHeadPlugin const &other) noexcept;

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
    dpm_mask_head_shape shapeOf(nvinfer1::Dims const &tokens) const noexcept;
    int32_t checkShapes(nvinfer1::PluginTensorDesc const *in, int32_t inputs) const noexcept;

    int32_t height, width;
    mutable std::shared_ptr<dpm_kernels> kernels; // opened at first need, on the device that is current then
    std::array<nvinfer1::PluginField, 2> stored;  // height and width, as they go into a plan
    nvinfer1::PluginFieldCollection fields{};
};

class MaskHeadCreator : public nvinfer1::IPluginCreatorV3One {
  public:
    MaskHeadCreator() noexcept;
    nvinfer1::IPluginV3 *createPlugin(char const *name, nvinfer1::PluginFieldCollection const *fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const *getFieldNames() noexcept override;
    char const *getPluginName() const noexcept override;
    char const *getPluginVersion() const noexcept override;
    char const *getPluginNamespace() const noexcept override;

  private:
    std::array<nvinfer1::PluginField, 2> declared;
    nvinfer1::PluginFieldCollection fields{};
};

} // namespace dpm_edge

#endif
