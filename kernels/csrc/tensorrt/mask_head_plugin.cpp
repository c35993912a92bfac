#include "mask_head_plugin.h"

#include <cstring>
#include <initializer_list>
#include <new>
#include <string>

#include "report.h"

namespace dpm_edge {

using nvinfer1::DataType;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

constexpr char const *NAME = "DpmMaskHead";
constexpr int32_t TOKENS = 4, WEIGHTS = 8, INPUTS = TOKENS + WEIGHTS, LEAST_SIDE = 4, MULTIPLE = 64;

int32_t refuse(char const *what, std::string const &why) noexcept { return fail(NAME, what, why.c_str()); }

std::string text(nvinfer1::Dims const &dims) {
    std::string out = "(";
    for (int32_t i = 0; i < dims.nbDims; ++i) out += (i ? ", " : "") + std::to_string(dims.d[i]);
    return out + ")";
}

bool is(nvinfer1::Dims const &dims, std::initializer_list<int64_t> wanted) {
    if (dims.nbDims != static_cast<int32_t>(wanted.size())) return false;
    int32_t i = 0;
    for (auto const size : wanted)
        if (dims.d[i++] != size) return false;
    return true;
}

// Bytes of the two further outputs of the gates, which no engine reads.
size_t unread(dpm_mask_head_shape const &shape) {
    auto const bytes = static_cast<size_t>(shape.batch) * static_cast<size_t>(shape.channels) * 2;
    return (bytes + 255) / 256 * 256;
}

} // namespace

MaskHeadPlugin::MaskHeadPlugin(int32_t gridHeight, int32_t gridWidth) noexcept
    : height(gridHeight), width(gridWidth),
      stored{PluginField{"height", &height, PluginFieldType::kINT32, 1},
             PluginField{"width", &width, PluginFieldType::kINT32, 1}} {
    fields.nbFields = static_cast<int32_t>(stored.size());
    fields.fields = stored.data();
}

MaskHeadPlugin::MaskHeadPlugin(MaskHeadPlugin const &other) noexcept : MaskHeadPlugin(other.height, other.width) {
    kernels = other.kernels;
}

nvinfer1::IPluginCapability *MaskHeadPlugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
    case PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore *>(this);
    case PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild *>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime *>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3 *MaskHeadPlugin::clone() noexcept { return new (std::nothrow) MaskHeadPlugin(*this); }
char const *MaskHeadPlugin::getPluginName() const noexcept { return NAME; }
char const *MaskHeadPlugin::getPluginVersion() const noexcept { return VERSION; }
char const *MaskHeadPlugin::getPluginNamespace() const noexcept { return NAMESPACE; }

dpm_mask_head_shape MaskHeadPlugin::shapeOf(nvinfer1::Dims const &tokens) const noexcept {
    return {static_cast<int>(tokens.d[0]), height, width, static_cast<int>(tokens.d[2])};
}

// Widths and weights are known when an engine is built; the batch may be −1.
int32_t MaskHeadPlugin::checkShapes(nvinfer1::PluginTensorDesc const *in, int32_t inputs) const noexcept {
    try {
        if (inputs != INPUTS)
            return refuse("inputs", "four blocks' tokens and eight weights are wanted, " + std::to_string(inputs) + " came");
        auto const &tokens = in[0].dims;
        if (tokens.nbDims != 3) return refuse("tokens", text(tokens) + " came, (B, 1 + height*width, d) is wanted");
        auto const d = tokens.d[2];
        if (tokens.d[1] != 1 + int64_t{height} * width || d < MULTIPLE || d % MULTIPLE)
            return refuse("tokens", text(tokens) + " came; 1 + " + std::to_string(height) + "*" + std::to_string(width) +
                                        " tokens of a width that is a multiple of 64 are wanted");
        for (int32_t i = 1; i < TOKENS; ++i)
            if (!is(in[i].dims, {tokens.d[0], tokens.d[1], d}))
                return refuse("tokens", text(in[i].dims) + " of a further block beside " + text(tokens));
        std::initializer_list<int64_t> const wanted[WEIGHTS] = {{9, 4 * d, 2 * d}, {2 * d}, {9, 2 * d, d}, {d},
                                                                {9, d, d},         {d},     {d, d},        {d}};
        for (int32_t i = 0; i < WEIGHTS; ++i)
            if (!is(in[TOKENS + i].dims, wanted[i]))
                return refuse("weights", "number " + std::to_string(i) + " is " + text(in[TOKENS + i].dims) +
                                             " beside tokens " + text(tokens));
    } catch (std::bad_alloc const &) {
        return fail(NAME, "shapes", "out of host memory");
    }
    return 0;
}

int32_t MaskHeadPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const *in, int32_t inputs,
                                        nvinfer1::DynamicPluginTensorDesc const *, int32_t outputs) noexcept {
    nvinfer1::PluginTensorDesc descs[INPUTS];
    if (outputs != 1) return fail(NAME, "outputs", "one output is wanted");
    for (int32_t i = 0; i < inputs && i < INPUTS; ++i) descs[i] = in[i].desc;
    return checkShapes(descs, inputs);
}

bool MaskHeadPlugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const *tensors,
                                               int32_t, int32_t) noexcept {
    auto const &tensor = tensors[position].desc;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && tensor.type == DataType::kHALF;
}

int32_t MaskHeadPlugin::getOutputDataTypes(DataType *types, int32_t outputs, DataType const *,
                                           int32_t inputs) const noexcept {
    if (outputs != 1 || inputs != INPUTS) return fail(NAME, "outputs", "one output of twelve inputs is wanted");
    types[0] = DataType::kHALF;
    return 0;
}

int32_t MaskHeadPlugin::getOutputShapes(nvinfer1::DimsExprs const *in, int32_t inputs, nvinfer1::DimsExprs const *,
                                        int32_t, nvinfer1::DimsExprs *out, int32_t outputs,
                                        nvinfer1::IExprBuilder &) noexcept {
    if (outputs != 1 || inputs != INPUTS) return fail(NAME, "outputs", "one output of twelve inputs is wanted");
    if (in[0].nbDims != 3) return fail(NAME, "tokens", "(B, 1 + height*width, d) is wanted");
    out[0].nbDims = 2;
    out[0].d[0] = in[0].d[0];
    out[0].d[1] = in[0].d[2];
    return 0;
}

size_t MaskHeadPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const *in, int32_t,
                                        nvinfer1::DynamicPluginTensorDesc const *, int32_t) const noexcept {
    if (openKernels(NAME, kernels)) return 0;
    auto const shape = shapeOf(in[0].max);
    auto const bytes = dpm_mask_head_workspace(kernels.get(), shape);
    if (!bytes) fail(NAME, "workspace", dpm_last_error());
    return bytes ? bytes + 2 * unread(shape) : 0;
}

int32_t MaskHeadPlugin::onShapeChange(nvinfer1::PluginTensorDesc const *in, int32_t inputs,
                                      nvinfer1::PluginTensorDesc const *, int32_t) noexcept {
    return checkShapes(in, inputs) ? -1 : openKernels(NAME, kernels);
}

int32_t MaskHeadPlugin::enqueue(nvinfer1::PluginTensorDesc const *in, nvinfer1::PluginTensorDesc const *,
                                void const *const *inputs, void *const *outputs, void *workspace,
                                cudaStream_t stream) noexcept {
    if (openKernels(NAME, kernels)) return -1;
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

nvinfer1::IPluginV3 *MaskHeadPlugin::attachToContext(nvinfer1::IPluginResourceContext *) noexcept { return clone(); }

nvinfer1::PluginFieldCollection const *MaskHeadPlugin::getFieldsToSerialize() noexcept { return &fields; }

MaskHeadCreator::MaskHeadCreator() noexcept
    : declared{PluginField{"height", nullptr, PluginFieldType::kINT32, 1},
               PluginField{"width", nullptr, PluginFieldType::kINT32, 1}} {
    fields.nbFields = static_cast<int32_t>(declared.size());
    fields.fields = declared.data();
}

nvinfer1::IPluginV3 *MaskHeadCreator::createPlugin(char const *, nvinfer1::PluginFieldCollection const *given,
                                                   nvinfer1::TensorRTPhase) noexcept {
    int64_t height = 0, width = 0;
    for (int32_t i = 0; given && i < given->nbFields; ++i) {
        auto const &field = given->fields[i];
        auto *const target = !std::strcmp(field.name, "height") ? &height : !std::strcmp(field.name, "width") ? &width : nullptr;
        if (!target) continue; // plugin_version and plugin_namespace come along
        if (!field.data || field.length != 1) return fail(NAME, field.name, "one number is wanted"), nullptr;
        if (field.type == PluginFieldType::kINT32)
            *target = *static_cast<int32_t const *>(field.data);
        else if (field.type == PluginFieldType::kINT64)
            *target = *static_cast<int64_t const *>(field.data);
        else
            return fail(NAME, field.name, "an integer is wanted"), nullptr;
    }
    constexpr int64_t MOST_SIDE = 1 << 15;
    if (height < LEAST_SIDE || width < LEAST_SIDE || height > MOST_SIDE || width > MOST_SIDE)
        return fail(NAME, "fields", "height and width of the grid are wanted, each at least 4"), nullptr;
    return new (std::nothrow) MaskHeadPlugin(static_cast<int32_t>(height), static_cast<int32_t>(width));
}

nvinfer1::PluginFieldCollection const *MaskHeadCreator::getFieldNames() noexcept { return &fields; }
char const *MaskHeadCreator::getPluginName() const noexcept { return NAME; }
char const *MaskHeadCreator::getPluginVersion() const noexcept { return VERSION; }
char const *MaskHeadCreator::getPluginNamespace() const noexcept { return NAMESPACE; }

} // namespace dpm_edge
