// TensorRT plugin: the mask generator (HMG) of the paper's form, fused, over libdpm_kernels.
//
// ONNX node DpmMaskHead, domain dpm_edge, plugin_version "1", plugin_namespace "dpm_edge", all tensors float16:
//     fields   height, width: the grid of patches, each at least 4 (integers)
//     inputs   tokens of four blocks (B, 1 + height·width, d), cls first; d a multiple of 64
//              three times weight (9, C, N) and bias (N): 4d → 2d → d → d channels; then weight (d, d), bias (d),
//              packed as kernels/mask_head/pack.py packs them
//     output   mask (B, d), as kernels/mask_head/contract.py defines it

#include <array>
#include <cstring>
#include <initializer_list>
#include <string>

#include "plugin.h"

namespace dpm_edge {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

constexpr int32_t TOKENS = 4, WEIGHTS = 8, LEAST_SIDE = 4, MULTIPLE = 64;

std::string text(nvinfer1::Dims const &dims) {
    std::string out = "(";
    for (int32_t i = 0; i < dims.nbDims; ++i) out += (i ? ", " : "") + std::to_string(dims.d[i]);
    return out + ")";
}

bool is(nvinfer1::Dims const &dims, std::initializer_list<int64_t> expected) {
    if (dims.nbDims != static_cast<int32_t>(expected.size())) return false;
    int32_t i = 0;
    for (auto const size : expected)
        if (dims.d[i++] != size) return false;
    return true;
}

// Bytes of the two further outputs of the gates, which no engine reads.
size_t unread(dpm_mask_head_shape const &shape) {
    auto const bytes = static_cast<size_t>(shape.batch) * static_cast<size_t>(shape.channels) * 2;
    return (bytes + 255) / 256 * 256;
}

class MaskHeadPlugin : public Plugin<MaskHeadPlugin> {
  public:
    static constexpr char const *NAME = "DpmMaskHead";
    static constexpr int32_t INPUTS = TOKENS + WEIGHTS;
    static constexpr DataType OUTPUT = DataType::kHALF;

    MaskHeadPlugin(int32_t gridHeight, int32_t gridWidth) noexcept
        : height(gridHeight), width(gridWidth), stored{PluginField{"height", &height, PluginFieldType::kINT32, 1},
                                                       PluginField{"width", &width, PluginFieldType::kINT32, 1}} {
        fields.nbFields = static_cast<int32_t>(stored.size());
        fields.fields = stored.data();
    }
    MaskHeadPlugin(MaskHeadPlugin const &other) noexcept : MaskHeadPlugin(other.height, other.width) {
        kernels = other.kernels;
    }

    static nvinfer1::IPluginV3 *create(nvinfer1::PluginFieldCollection const *given) noexcept {
        int64_t height = 0, width = 0;
        for (int32_t i = 0; given && i < given->nbFields; ++i) {
            auto const &field = given->fields[i];
            auto *const target = !std::strcmp(field.name, "height") ? &height : !std::strcmp(field.name, "width") ? &width : nullptr;
            if (!target) continue; // plugin_version and plugin_namespace come along
            if (!field.data || field.length != 1) return fail(NAME, field.name, "expected one number, got several or none"), nullptr;
            if (field.type == PluginFieldType::kINT32)
                *target = *static_cast<int32_t const *>(field.data);
            else if (field.type == PluginFieldType::kINT64)
                *target = *static_cast<int64_t const *>(field.data);
            else
                return fail(NAME, field.name, "expected an integer, got another type"), nullptr;
        }
        constexpr int64_t MOST_SIDE = 1 << 15;
        if (height < LEAST_SIDE || width < LEAST_SIDE || height > MOST_SIDE || width > MOST_SIDE)
            return fail(NAME, "fields", "expected height and width of the grid, each at least 4, got less"), nullptr;
        return new (std::nothrow) MaskHeadPlugin(static_cast<int32_t>(height), static_cast<int32_t>(width));
    }

    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const *in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const *, int32_t outputs) noexcept override {
        if (checkNumbers(inputs, outputs)) return -1;
        nvinfer1::PluginTensorDesc descs[INPUTS];
        for (int32_t i = 0; i < INPUTS; ++i) descs[i] = in[i].desc;
        return checkShapes(descs, inputs);
    }

    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const *tensors, int32_t,
                                   int32_t) noexcept override {
        auto const &tensor = tensors[position].desc;
        return tensor.format == nvinfer1::TensorFormat::kLINEAR && tensor.type == DataType::kHALF;
    }

    int32_t getOutputShapes(nvinfer1::DimsExprs const *in, int32_t inputs, nvinfer1::DimsExprs const *, int32_t,
                            nvinfer1::DimsExprs *out, int32_t outputs, nvinfer1::IExprBuilder &) noexcept override {
        if (checkNumbers(inputs, outputs)) return -1;
        if (in[0].nbDims != 3) return fail(NAME, "tokens", "expected (B, 1 + height*width, d), got another rank");
        out[0].nbDims = 2;
        out[0].d[0] = in[0].d[0];
        out[0].d[1] = in[0].d[2];
        return 0;
    }

    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const *in, int32_t,
                            nvinfer1::DynamicPluginTensorDesc const *, int32_t) const noexcept override {
        if (open()) return 0;
        auto const shape = shapeOf(in[0].max);
        auto const bytes = dpm_mask_head_workspace(kernels.get(), shape);
        if (!bytes) fail(NAME, "workspace", dpm_last_error());
        return bytes ? bytes + 2 * unread(shape) : 0;
    }

    int32_t onShapeChange(nvinfer1::PluginTensorDesc const *in, int32_t inputs, nvinfer1::PluginTensorDesc const *,
                          int32_t) noexcept override {
        return checkShapes(in, inputs) ? -1 : open();
    }

    int32_t enqueue(nvinfer1::PluginTensorDesc const *in, nvinfer1::PluginTensorDesc const *, void const *const *inputs,
                    void *const *outputs, void *workspace, cudaStream_t stream) noexcept override {
        if (open()) return -1;
        auto const shape = shapeOf(in[0].dims);
        dpm_address addresses[INPUTS];
        for (int32_t i = 0; i < INPUTS; ++i) addresses[i] = reinterpret_cast<dpm_address>(inputs[i]);
        // The kernel also multiplies the mask with a feature. No engine reads that product: any B x d halves will do for the
        // feature, and the products go to the front of the workspace.
        auto const scratch = reinterpret_cast<dpm_address>(workspace);
        auto const bytes = unread(shape);
        if (dpm_mask_head(kernels.get(), shape, addresses, addresses + TOKENS, addresses[0], scratch + 2 * bytes,
                          reinterpret_cast<dpm_address>(outputs[0]), scratch, scratch + bytes, stream))
            return fail(NAME, "enqueue", dpm_last_error());
        return 0;
    }

  private:
    static int32_t refuse(char const *what, std::string const &why) noexcept { return fail(NAME, what, why.c_str()); }

    dpm_mask_head_shape shapeOf(nvinfer1::Dims const &tokens) const noexcept {
        return {static_cast<int>(tokens.d[0]), height, width, static_cast<int>(tokens.d[2])};
    }

    // Widths and weights are known when an engine is built; the batch may be −1.
    int32_t checkShapes(nvinfer1::PluginTensorDesc const *in, int32_t inputs) const noexcept {
        try {
            if (inputs != INPUTS)
                return refuse("inputs", "expected tokens of four blocks and eight weights, got " + std::to_string(inputs));
            auto const &tokens = in[0].dims;
            if (tokens.nbDims != 3) return refuse("tokens", "expected (B, 1 + height*width, d), got " + text(tokens));
            auto const d = tokens.d[2];
            if (tokens.d[1] != 1 + int64_t{height} * width || d < MULTIPLE || d % MULTIPLE)
                return refuse("tokens", "expected 1 + " + std::to_string(height) + "*" + std::to_string(width) +
                                            " tokens of a width that is a multiple of 64, got " + text(tokens));
            for (int32_t i = 1; i < TOKENS; ++i)
                if (!is(in[i].dims, {tokens.d[0], tokens.d[1], d}))
                    return refuse("tokens", "expected " + text(tokens) + " of every block, got " + text(in[i].dims));
            std::initializer_list<int64_t> const expected[WEIGHTS] = {{9, 4 * d, 2 * d}, {2 * d}, {9, 2 * d, d}, {d},
                                                                    {9, d, d},         {d},     {d, d},        {d}};
            for (int32_t i = 0; i < WEIGHTS; ++i)
                if (!is(in[TOKENS + i].dims, expected[i]))
                    return refuse("weights", "expected those of tokens " + text(tokens) + ", got " +
                                                 text(in[TOKENS + i].dims) + " as number " + std::to_string(i));
        } catch (std::bad_alloc const &) {
            return fail(NAME, "shapes", "out of host memory");
        }
        return 0;
    }

    int32_t height, width;
    std::array<PluginField, 2> stored; // height and width, as they go into a plan
};

} // namespace

nvinfer1::IPluginCreatorInterface *maskHeadCreator() {
    static PluginField const names[] = {{"height", nullptr, PluginFieldType::kINT32, 1},
                                        {"width", nullptr, PluginFieldType::kINT32, 1}};
    static Creator<MaskHeadPlugin> creator({2, names});
    return &creator;
}

} // namespace dpm_edge
