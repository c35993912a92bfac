#include "masked_similarity_plugin.h"

#include <new>

#include "report.h"

namespace dpm_edge {

using nvinfer1::DataType;
using nvinfer1::PluginCapabilityType;

namespace {

constexpr char const *NAME = "DpmMaskedSimilarity";
constexpr int32_t QUERY = 0, MASK = 1, TARGETS = 2, INPUTS = 3;

dpm_targets targetsOf(nvinfer1::Dims const &dims, DataType type, void const *rows) {
    return {reinterpret_cast<dpm_address>(rows), 0, type == DataType::kHALF ? DPM_FLOAT16 : DPM_FLOAT32, dims.d[0],
            static_cast<int>(dims.d[1])};
}

// Widths are known when an engine is built; batches may be −1.
int32_t checkShapes(nvinfer1::PluginTensorDesc const *in) noexcept {
    for (int32_t i = 0; i < INPUTS; ++i)
        if (in[i].dims.nbDims != 2) return fail(NAME, "shapes", "query (B, D), mask (B, D), targets (N, D) are wanted");
    auto const width = in[TARGETS].dims.d[1];
    if (width < 1 || width % 128) return fail(NAME, "width", "a multiple of 128 is wanted: pad with zeros");
    if (in[QUERY].dims.d[1] != width || in[MASK].dims.d[1] != width || in[QUERY].dims.d[0] != in[MASK].dims.d[0])
        return fail(NAME, "shapes", "query and mask are wanted with one number of rows, as wide as the targets");
    return 0;
}

} // namespace

nvinfer1::IPluginCapability *MaskedSimilarityPlugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
    case PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore *>(this);
    case PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild *>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime *>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3 *MaskedSimilarityPlugin::clone() noexcept { return new (std::nothrow) MaskedSimilarityPlugin(*this); }
char const *MaskedSimilarityPlugin::getPluginName() const noexcept { return NAME; }
char const *MaskedSimilarityPlugin::getPluginVersion() const noexcept { return VERSION; }
char const *MaskedSimilarityPlugin::getPluginNamespace() const noexcept { return NAMESPACE; }

int32_t MaskedSimilarityPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const *in, int32_t inputs,
                                                nvinfer1::DynamicPluginTensorDesc const *, int32_t) noexcept {
    if (inputs != INPUTS) return fail(NAME, "inputs", "query, mask and targets are wanted");
    nvinfer1::PluginTensorDesc const descs[] = {in[QUERY].desc, in[MASK].desc, in[TARGETS].desc};
    return checkShapes(descs);
}

bool MaskedSimilarityPlugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const *tensors,
                                                       int32_t, int32_t) noexcept {
    auto const &tensor = tensors[position].desc;
    bool const half = position == TARGETS && tensor.type == DataType::kHALF;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && (tensor.type == DataType::kFLOAT || half);
}

int32_t MaskedSimilarityPlugin::getOutputDataTypes(DataType *types, int32_t outputs, DataType const *,
                                                   int32_t inputs) const noexcept {
    if (outputs != 1 || inputs != INPUTS) return fail(NAME, "outputs", "one output of three inputs is wanted");
    types[0] = DataType::kFLOAT;
    return 0;
}

int32_t MaskedSimilarityPlugin::getOutputShapes(nvinfer1::DimsExprs const *in, int32_t inputs, nvinfer1::DimsExprs const *,
                                                int32_t, nvinfer1::DimsExprs *out, int32_t outputs,
                                                nvinfer1::IExprBuilder &) noexcept {
    if (outputs != 1 || inputs != INPUTS) return fail(NAME, "outputs", "one output of three inputs is wanted");
    out[0].nbDims = 2;
    out[0].d[0] = in[QUERY].d[0];
    out[0].d[1] = in[TARGETS].d[0];
    return 0;
}

size_t MaskedSimilarityPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const *in, int32_t,
                                                nvinfer1::DynamicPluginTensorDesc const *, int32_t) const noexcept {
    auto const targets = targetsOf(in[TARGETS].max, in[TARGETS].desc.type, nullptr);
    auto const bytes = dpm_masked_similarity_workspace(&targets, static_cast<int>(in[QUERY].max.d[0]));
    if (!bytes) fail(NAME, "workspace", dpm_last_error());
    return bytes;
}

int32_t MaskedSimilarityPlugin::onShapeChange(nvinfer1::PluginTensorDesc const *in, int32_t,
                                              nvinfer1::PluginTensorDesc const *, int32_t) noexcept {
    return checkShapes(in) ? -1 : openKernels(NAME, kernels);
}

int32_t MaskedSimilarityPlugin::enqueue(nvinfer1::PluginTensorDesc const *in, nvinfer1::PluginTensorDesc const *,
                                        void const *const *inputs, void *const *outputs, void *workspace,
                                        cudaStream_t stream) noexcept {
    auto const address = [](void const *memory) { return reinterpret_cast<dpm_address>(memory); };
    auto const targets = targetsOf(in[TARGETS].dims, in[TARGETS].type, inputs[TARGETS]);
    if (openKernels(NAME, kernels)) return -1;
    if (dpm_masked_similarity(kernels.get(), &targets, address(inputs[QUERY]), address(inputs[MASK]),
                              static_cast<int>(in[QUERY].dims.d[0]), address(workspace), address(outputs[0]), stream))
        return fail(NAME, "enqueue", dpm_last_error());
    return 0;
}

nvinfer1::IPluginV3 *MaskedSimilarityPlugin::attachToContext(nvinfer1::IPluginResourceContext *) noexcept {
    return clone();
}

nvinfer1::PluginFieldCollection const *MaskedSimilarityPlugin::getFieldsToSerialize() noexcept { return &fields; }

nvinfer1::IPluginV3 *MaskedSimilarityCreator::createPlugin(char const *, nvinfer1::PluginFieldCollection const *,
                                                           nvinfer1::TensorRTPhase) noexcept {
    return new (std::nothrow) MaskedSimilarityPlugin();
}

nvinfer1::PluginFieldCollection const *MaskedSimilarityCreator::getFieldNames() noexcept { return &fields; }
char const *MaskedSimilarityCreator::getPluginName() const noexcept { return NAME; }
char const *MaskedSimilarityCreator::getPluginVersion() const noexcept { return VERSION; }
char const *MaskedSimilarityCreator::getPluginNamespace() const noexcept { return NAMESPACE; }

} // namespace dpm_edge
