// TensorRT plugin: masked similarity of queries to targets (closed-set identification), over libdpm_kernels.
//
// ONNX node DpmMaskedSimilarity, domain dpm_edge, plugin_version "1", plugin_namespace "dpm_edge":
//     inputs   query (B, D) float32, mask (B, D) float32, targets (N, D) float32 or float16; D a multiple of 128
//     output   similarity (B, N) float32, as kernels/masked_distance/contract.py defines it

#include "plugin.h"

namespace dpm_edge {

using nvinfer1::DataType;

namespace {

constexpr int32_t QUERY = 0, MASK = 1, TARGETS = 2;

class MaskedSimilarityPlugin : public Plugin<MaskedSimilarityPlugin> {
  public:
    static constexpr char const *NAME = "DpmMaskedSimilarity";
    static constexpr int32_t INPUTS = 3;
    static constexpr DataType OUTPUT = DataType::kFLOAT;

    static nvinfer1::IPluginV3 *create(nvinfer1::PluginFieldCollection const *) noexcept {
        return new (std::nothrow) MaskedSimilarityPlugin();
    }

    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const *in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const *, int32_t outputs) noexcept override {
        if (checkNumbers(inputs, outputs)) return -1;
        nvinfer1::PluginTensorDesc const descs[] = {in[QUERY].desc, in[MASK].desc, in[TARGETS].desc};
        return checkShapes(descs);
    }

    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const *tensors, int32_t,
                                   int32_t) noexcept override {
        auto const &tensor = tensors[position].desc;
        bool const half = position == TARGETS && tensor.type == DataType::kHALF;
        return tensor.format == nvinfer1::TensorFormat::kLINEAR && (tensor.type == DataType::kFLOAT || half);
    }

    int32_t getOutputShapes(nvinfer1::DimsExprs const *in, int32_t inputs, nvinfer1::DimsExprs const *, int32_t,
                            nvinfer1::DimsExprs *out, int32_t outputs, nvinfer1::IExprBuilder &) noexcept override {
        if (checkNumbers(inputs, outputs)) return -1;
        out[0].nbDims = 2;
        out[0].d[0] = in[QUERY].d[0];
        out[0].d[1] = in[TARGETS].d[0];
        return 0;
    }

    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const *in, int32_t,
                            nvinfer1::DynamicPluginTensorDesc const *, int32_t) const noexcept override {
        auto const targets = targetsOf(in[TARGETS].max, in[TARGETS].desc.type, nullptr);
        auto const bytes = dpm_masked_similarity_workspace(&targets, static_cast<int>(in[QUERY].max.d[0]));
        if (!bytes) fail(NAME, "workspace", dpm_last_error());
        return bytes;
    }

    int32_t onShapeChange(nvinfer1::PluginTensorDesc const *in, int32_t, nvinfer1::PluginTensorDesc const *,
                          int32_t) noexcept override {
        return checkShapes(in) ? -1 : open();
    }

    int32_t enqueue(nvinfer1::PluginTensorDesc const *in, nvinfer1::PluginTensorDesc const *, void const *const *inputs,
                    void *const *outputs, void *workspace, cudaStream_t stream) noexcept override {
        auto const address = [](void const *memory) { return reinterpret_cast<dpm_address>(memory); };
        auto const targets = targetsOf(in[TARGETS].dims, in[TARGETS].type, inputs[TARGETS]);
        if (open()) return -1;
        if (dpm_masked_similarity(kernels.get(), &targets, address(inputs[QUERY]), address(inputs[MASK]),
                                  static_cast<int>(in[QUERY].dims.d[0]), address(workspace), address(outputs[0]), stream))
            return fail(NAME, "enqueue", dpm_last_error());
        return 0;
    }

  private:
    static dpm_targets targetsOf(nvinfer1::Dims const &dims, DataType type, void const *rows) {
        return {reinterpret_cast<dpm_address>(rows), 0, type == DataType::kHALF ? DPM_FLOAT16 : DPM_FLOAT32, dims.d[0],
                static_cast<int>(dims.d[1])};
    }

    // Widths are known when an engine is built; batches may be −1.
    static int32_t checkShapes(nvinfer1::PluginTensorDesc const *in) noexcept {
        for (int32_t i = 0; i < INPUTS; ++i)
            if (in[i].dims.nbDims != 2) return fail(NAME, "shapes", "expected query (B, D), mask (B, D) and targets (N, D), got other ranks");
        auto const width = in[TARGETS].dims.d[1];
        if (width < 1 || width % 128) return fail(NAME, "width", "expected a multiple of 128, got another. Pad with zeros");
        if (in[QUERY].dims.d[1] != width || in[MASK].dims.d[1] != width || in[QUERY].dims.d[0] != in[MASK].dims.d[0])
            return fail(NAME, "shapes", "expected query and mask of one number of rows, as wide as the targets, got others");
        return 0;
    }
};

} // namespace

nvinfer1::IPluginCreatorInterface *maskedSimilarityCreator() {
    static Creator<MaskedSimilarityPlugin> creator;
    return &creator;
}

} // namespace dpm_edge
