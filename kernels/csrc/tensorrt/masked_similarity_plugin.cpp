#include "masked_similarity_plugin.h"

#include <mutex>
#include <new>
#include <string>

namespace dpm_edge {

using nvinfer1::DataType;
using nvinfer1::PluginCapabilityType;

namespace {

constexpr char const *NAME = "DpmMaskedSimilarity", *VERSION = "1", *NAMESPACE = "dpm_edge";
constexpr int32_t QUERY = 0, MASK = 1, TARGETS = 2, INPUTS = 3;

nvinfer1::ILogger *logger = nullptr;
std::mutex loggerLock;

// Report in TensorRT's log; plugins may not throw.
int32_t fail(char const *what, char const *why) noexcept {
    std::lock_guard<std::mutex> hold(loggerLock);
    if (logger) {
        try {
            logger->log(nvinfer1::ILogger::Severity::kERROR, (std::string(NAME) + ": " + what + ": " + why).c_str());
        } catch (...) { // out of host memory: the status still says that it failed
        }
    }
    return -1;
}

dpm_targets targetsOf(nvinfer1::Dims const &dims, DataType type, void const *rows) {
    return {reinterpret_cast<dpm_address>(rows), 0, type == DataType::kHALF ? DPM_FLOAT16 : DPM_FLOAT32, dims.d[0],
            static_cast<int>(dims.d[1])};
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
    if (inputs != INPUTS) return fail("inputs", "query, mask and targets are wanted");
    for (int32_t i = 0; i < inputs; ++i)
        if (in[i].desc.dims.nbDims != 2) return fail("shapes", "query (B, D), mask (B, D), targets (N, D) are wanted");
    auto const width = in[TARGETS].desc.dims.d[1];
    if (width > 0 && width % 128) return fail("width", "a multiple of 128 is wanted: pad with zeros");
    return 0;
}

bool MaskedSimilarityPlugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const *tensors,
                                                       int32_t, int32_t) noexcept {
    auto const &tensor = tensors[position].desc;
    bool const half = position == TARGETS && tensor.type == DataType::kHALF;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && (tensor.type == DataType::kFLOAT || half);
}

int32_t MaskedSimilarityPlugin::getOutputDataTypes(DataType *types, int32_t outputs, DataType const *,
                                                   int32_t inputs) const noexcept {
    if (outputs != 1 || inputs != INPUTS) return fail("outputs", "one output of three inputs is wanted");
    types[0] = DataType::kFLOAT;
    return 0;
}

int32_t MaskedSimilarityPlugin::getOutputShapes(nvinfer1::DimsExprs const *in, int32_t inputs, nvinfer1::DimsExprs const *,
                                                int32_t, nvinfer1::DimsExprs *out, int32_t outputs,
                                                nvinfer1::IExprBuilder &) noexcept {
    if (outputs != 1 || inputs != INPUTS) return fail("outputs", "one output of three inputs is wanted");
    out[0].nbDims = 2;
    out[0].d[0] = in[QUERY].d[0];
    out[0].d[1] = in[TARGETS].d[0];
    return 0;
}

size_t MaskedSimilarityPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const *in, int32_t,
                                                nvinfer1::DynamicPluginTensorDesc const *, int32_t) const noexcept {
    auto const targets = targetsOf(in[TARGETS].max, in[TARGETS].desc.type, nullptr);
    auto const bytes = dpm_masked_similarity_workspace(&targets, static_cast<int>(in[QUERY].max.d[0]));
    if (!bytes) fail("workspace", dpm_last_error());
    return bytes;
}

int32_t MaskedSimilarityPlugin::onShapeChange(nvinfer1::PluginTensorDesc const *, int32_t,
                                              nvinfer1::PluginTensorDesc const *, int32_t) noexcept {
    if (kernels) return 0;
    dpm_kernels *opened = nullptr;
    if (dpm_open(DPM_CURRENT_DEVICE, &opened)) return fail("opening the kernels", dpm_last_error());
    try {
        kernels.reset(opened, dpm_close);
    } catch (std::bad_alloc const &) { // reset has closed it
        return fail("opening the kernels", "out of host memory");
    }
    return 0;
}

int32_t MaskedSimilarityPlugin::enqueue(nvinfer1::PluginTensorDesc const *in, nvinfer1::PluginTensorDesc const *,
                                        void const *const *inputs, void *const *outputs, void *workspace,
                                        cudaStream_t stream) noexcept {
    auto const address = [](void const *memory) { return reinterpret_cast<dpm_address>(memory); };
    auto const targets = targetsOf(in[TARGETS].dims, in[TARGETS].type, inputs[TARGETS]);
    if (onShapeChange(in, INPUTS, nullptr, 0)) return -1;
    if (dpm_masked_similarity(kernels.get(), &targets, address(inputs[QUERY]), address(inputs[MASK]),
                              static_cast<int>(in[QUERY].dims.d[0]), address(workspace), address(outputs[0]), stream))
        return fail("enqueue", dpm_last_error());
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

// What IPluginRegistry::loadLibrary looks for.
extern "C" DPM_API void setLoggerFinder(nvinfer1::ILoggerFinder *finder) {
    std::lock_guard<std::mutex> hold(dpm_edge::loggerLock);
    if (finder) dpm_edge::logger = finder->findLogger();
}

extern "C" DPM_API nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count) {
    static dpm_edge::MaskedSimilarityCreator creator;
    static nvinfer1::IPluginCreatorInterface *const creators[] = {&creator};
    count = 1;
    return creators;
}
