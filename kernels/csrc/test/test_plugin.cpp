// The TensorRT plugins through their own interfaces, as TensorRT calls them, against the stand-in driver.

#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <initializer_list>

#include <NvInferRuntime.h>

#include "../dpm_kernels.h"
#include "../images.h"
#include "stub_driver.h"

extern "C" nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count);

namespace {

int failures = 0;

void check(bool condition, char const *what) {
    if (condition) return;
    ++failures;
    std::fprintf(stderr, "not so: %s (last error: %s)\n", what, dpm_last_error());
}
#define CHECK(condition) check(condition, #condition)

nvinfer1::PluginTensorDesc tensor(int64_t rows, int64_t columns, nvinfer1::DataType type) {
    nvinfer1::PluginTensorDesc desc{};
    desc.dims.nbDims = 2;
    desc.dims.d[0] = rows;
    desc.dims.d[1] = columns;
    desc.type = type;
    desc.format = nvinfer1::TensorFormat::kLINEAR;
    return desc;
}

stub_record *record = nullptr;

nvinfer1::PluginTensorDesc half(std::initializer_list<int64_t> sizes) {
    nvinfer1::PluginTensorDesc desc{};
    for (auto const size : sizes) desc.dims.d[desc.dims.nbDims++] = size;
    desc.type = nvinfer1::DataType::kHALF;
    desc.format = nvinfer1::TensorFormat::kLINEAR;
    return desc;
}

nvinfer1::IPluginCreatorV3One *creatorOf(char const *name) {
    int32_t count = 0;
    auto *const *creators = getCreators(count);
    CHECK(count == 2);
    for (int32_t i = 0; i < count; ++i) {
        auto *creator = static_cast<nvinfer1::IPluginCreatorV3One *>(creators[i]);
        CHECK(std::strcmp(creator->getPluginNamespace(), "dpm_edge") == 0);
        CHECK(std::strcmp(creator->getPluginVersion(), "1") == 0);
        if (std::strcmp(creator->getPluginName(), name) == 0) return creator;
    }
    return nullptr;
}

nvinfer1::IPluginV3OneBuild *buildOf(nvinfer1::IPluginV3 *plugin) {
    return static_cast<nvinfer1::IPluginV3OneBuild *>(
        plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
}

nvinfer1::IPluginV3OneRuntime *runtimeOf(nvinfer1::IPluginV3 *plugin) {
    return static_cast<nvinfer1::IPluginV3OneRuntime *>(
        plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
}

void *address(uint64_t value) { return reinterpret_cast<void *>(value); }

char const *variantOf(stub_launch const &launch) {
    for (size_t i = 0; i < dpm_image_count; ++i)
        if (dpm_images[i].cubin == launch.image) return dpm_images[i].variant;
    return "";
}

void maskedSimilarity() {
    using nvinfer1::DataType;
    auto *creator = creatorOf("DpmMaskedSimilarity");
    if (!creator) return check(false, "the creator is there");
    auto *original = creator->createPlugin("similarity", creator->getFieldNames(), nvinfer1::TensorRTPhase::kBUILD);
    auto *plugin = original->clone();
    delete original; // TensorRT does so, too
    auto *build = buildOf(plugin);
    auto *runtime = runtimeOf(plugin);

    nvinfer1::PluginTensorDesc const tensors[] = {tensor(8, 768, DataType::kFLOAT), tensor(8, 768, DataType::kFLOAT),
                                                  tensor(751, 768, DataType::kHALF), tensor(8, 751, DataType::kFLOAT)};
    nvinfer1::DynamicPluginTensorDesc dynamic[4]{};
    for (int i = 0; i < 4; ++i) {
        dynamic[i].desc = tensors[i];
        dynamic[i].min = dynamic[i].max = tensors[i].dims;
    }
    for (int i = 0; i < 4; ++i) CHECK(build->supportsFormatCombination(i, dynamic, 3, 1));
    dynamic[0].desc.type = DataType::kHALF;
    CHECK(!build->supportsFormatCombination(0, dynamic, 3, 1));
    dynamic[0].desc.type = DataType::kFLOAT;
    CHECK(build->configurePlugin(dynamic, 3, dynamic + 3, 1) == 0);
    CHECK(build->configurePlugin(dynamic, 2, dynamic + 3, 1) != 0);
    for (int64_t const wrong : {700, 640}) { // no multiple of 128; not the query's width
        dynamic[2].desc.dims.d[1] = wrong;
        CHECK(build->configurePlugin(dynamic, 3, dynamic + 3, 1) != 0);
    }
    dynamic[2].desc.dims.d[1] = 768;
    dynamic[1].desc.dims.nbDims = 3;
    CHECK(build->configurePlugin(dynamic, 3, dynamic + 3, 1) != 0);
    dpm_targets const targets = {0x30000, 0, DPM_FLOAT16, 751, 768};
    CHECK(build->getWorkspaceSize(dynamic, 3, dynamic + 3, 1) == dpm_masked_similarity_workspace(&targets, 8));
    DataType output{};
    DataType const inputs[] = {DataType::kFLOAT, DataType::kFLOAT, DataType::kHALF};
    CHECK(build->getOutputDataTypes(&output, 1, inputs, 3) == 0 && output == DataType::kFLOAT);

    void const *const in[] = {address(0x10000), address(0x20000), address(0x30000)};
    void *const out[] = {address(0x40000)};
    CHECK(runtime->getFieldsToSerialize()->nbFields == 0);
    CHECK(runtime->onShapeChange(tensors, 3, tensors + 3, 1) == 0);
    CHECK(runtime->enqueue(tensors, tensors + 3, in, out, address(0x50000), nullptr) == 0);
    CHECK(record->launched == 2 && record->retained == 1);
    auto const &similarity = record->launches[1];
    CHECK(std::strcmp(variantOf(similarity), "masked_similarity_small_fp16") == 0);
    CHECK(similarity.parameters[3] == 0x30000); /* QM, MM, GAIN, T */
    auto *attached = runtime->attachToContext(nullptr);
    delete plugin;
    CHECK(record->released == 0); // the clone still uses the kernels
    delete attached;
    CHECK(record->released == 1 && record->loaded == record->unloaded);
}

// A plugin made again from what it puts into a plan, as TensorRT does when it reads one.
nvinfer1::IPluginV3 *throughAPlan(nvinfer1::IPluginCreatorV3One *creator, nvinfer1::IPluginV3 *plugin) {
    auto *again = creator->createPlugin("mask", runtimeOf(plugin)->getFieldsToSerialize(),
                                        nvinfer1::TensorRTPhase::kRUNTIME);
    delete plugin; // the fields point into it
    return again;
}

void maskHeadFields(nvinfer1::IPluginCreatorV3One *creator) {
    using nvinfer1::PluginField;
    using nvinfer1::PluginFieldType;
    int32_t const sixteen = 16, three = 3;
    int64_t const eight = 8;
    float const real = 8.0f;
    auto const make = [&](std::initializer_list<PluginField> given) {
        nvinfer1::PluginFieldCollection const fields{static_cast<int32_t>(given.size()), given.begin()};
        return creator->createPlugin("mask", &fields, nvinfer1::TensorRTPhase::kBUILD);
    };
    PluginField const height{"height", &sixteen, PluginFieldType::kINT32, 1};
    CHECK(creator->getFieldNames()->nbFields == 2);
    CHECK(!make({}) && !make({height}) && !creator->createPlugin("mask", nullptr, nvinfer1::TensorRTPhase::kBUILD));
    CHECK(!make({height, {"width", &three, PluginFieldType::kINT32, 1}}));
    CHECK(!make({height, {"width", &real, PluginFieldType::kFLOAT32, 1}}));
    CHECK(!make({height, {"width", &sixteen, PluginFieldType::kINT32, 2}}));
    auto *plugin = make({height, {"width", &eight, PluginFieldType::kINT64, 1}, {"plugin_version", "1", PluginFieldType::kCHAR, 1}});
    CHECK(plugin != nullptr);
    for (int times = 0; times < 2 && plugin; ++times) {
        auto const *fields = runtimeOf(plugin)->getFieldsToSerialize();
        CHECK(fields->nbFields == 2 && std::strcmp(fields->fields[0].name, "height") == 0);
        CHECK(*static_cast<int32_t const *>(fields->fields[0].data) == 16);
        CHECK(*static_cast<int32_t const *>(fields->fields[1].data) == 8);
        auto *copy = plugin->clone();
        CHECK(runtimeOf(copy)->getFieldsToSerialize()->fields[1].data != fields->fields[1].data); // outlives the original
        delete copy;
        plugin = throughAPlan(creator, plugin);
    }
    delete plugin;
}

void maskHead() {
    using nvinfer1::DataType;
    auto *creator = creatorOf("DpmMaskHead");
    if (!creator) return check(false, "the creator is there");
    maskHeadFields(creator);
    int32_t const height = 16, width = 8;
    nvinfer1::PluginField const given[] = {{"height", &height, nvinfer1::PluginFieldType::kINT32, 1},
                                           {"width", &width, nvinfer1::PluginFieldType::kINT32, 1}};
    nvinfer1::PluginFieldCollection const fields{2, given};
    auto *plugin = throughAPlan(creator, creator->createPlugin("mask", &fields, nvinfer1::TensorRTPhase::kBUILD));
    auto *build = buildOf(plugin);
    auto *runtime = runtimeOf(plugin);
    constexpr int INPUTS = 12;
    nvinfer1::PluginTensorDesc tensors[INPUTS + 1];
    for (int i = 0; i < 4; ++i) tensors[i] = half({2, 129, 768});
    std::initializer_list<int64_t> const weights[] = {{9, 3072, 1536}, {1536}, {9, 1536, 768}, {768},
                                                      {9, 768, 768},   {768},  {768, 768},     {768}};
    for (int i = 0; i < 8; ++i) tensors[4 + i] = half(weights[i]);
    tensors[INPUTS] = half({2, 768});
    nvinfer1::DynamicPluginTensorDesc dynamic[INPUTS + 1]{};
    for (int i = 0; i <= INPUTS; ++i) {
        dynamic[i].desc = tensors[i];
        dynamic[i].min = dynamic[i].max = tensors[i].dims;
        CHECK(build->supportsFormatCombination(i, dynamic, INPUTS, 1));
        dynamic[i].desc.type = DataType::kFLOAT;
        CHECK(!build->supportsFormatCombination(i, dynamic, INPUTS, 1));
        dynamic[i].desc.type = DataType::kHALF;
    }
    CHECK(build->configurePlugin(dynamic, INPUTS, dynamic + INPUTS, 1) == 0);
    for (int i = 0; i < 4; ++i) dynamic[i].desc.dims.d[0] = -1; // as TensorRT configures a network with a dynamic batch
    CHECK(build->configurePlugin(dynamic, INPUTS, dynamic + INPUTS, 1) == 0);
    CHECK(build->configurePlugin(dynamic, INPUTS - 1, dynamic + INPUTS, 1) != 0);
    for (int i = 0; i < INPUTS; ++i) { // every input's every size matters
        for (int d = i < 4 ? 1 : 0; d < tensors[i].dims.nbDims; ++d) {
            dynamic[i].desc.dims.d[d] += 64;
            CHECK(build->configurePlugin(dynamic, INPUTS, dynamic + INPUTS, 1) != 0);
            dynamic[i].desc.dims.d[d] -= 64;
        }
        dynamic[i].desc.dims.nbDims -= 1;
        CHECK(build->configurePlugin(dynamic, INPUTS, dynamic + INPUTS, 1) != 0);
        dynamic[i].desc.dims.nbDims += 1;
    }
    DataType output{};
    DataType inputTypes[INPUTS];
    for (auto &type : inputTypes) type = DataType::kHALF;
    CHECK(build->getOutputDataTypes(&output, 1, inputTypes, INPUTS) == 0 && output == DataType::kHALF);
    CHECK(build->getOutputDataTypes(&output, 2, inputTypes, INPUTS) != 0);

    auto const bytes = build->getWorkspaceSize(dynamic, INPUTS, dynamic + INPUTS, 1);
    auto const first = record->launched;
    uint64_t const unread = 3072, work = 0x1000000; // 2 x 768 halves, twice
    CHECK(bytes > 2 * unread);
    void const *in[INPUTS];
    for (int i = 0; i < INPUTS; ++i) in[i] = address(0x10000u * (i + 1));
    void *const out[] = {address(0xf0000)};
    CHECK(runtime->onShapeChange(tensors, INPUTS, tensors + INPUTS, 1) == 0);
    CHECK(runtime->enqueue(tensors, tensors + INPUTS, in, out, address(work), nullptr) == 0);
    CHECK(record->launched == first + 7);
    auto const &convolution = record->launches[first % STUB_KEPT], &gates = record->launches[(first + 6) % STUB_KEPT];
    CHECK(std::strstr(variantOf(convolution), "mask_head_first_convolution") != nullptr); // large or small, by the device
    CHECK(std::strcmp(variantOf(gates), "mask_head_gates_fp16") == 0);
    for (int i = 0; i < 5; ++i) CHECK(convolution.parameters[i] == 0x10000u * (i + 1)); // four tokens, the first weight
    uint64_t written[3] = {0, 0, 0}; // mask, masked feature, squared mask: pooled, weight, bias, feature, B, d stand in front
    for (int i = 0; i < 3; ++i) written[i] = gates.parameters[6 + i];
    CHECK(gates.parameters[1] == 0xb0000 && gates.parameters[2] == 0xc0000 && written[0] == 0xf0000);
    CHECK(written[1] == work && written[2] == work + unread);
    CHECK(gates.parameters[0] >= work + 2 * unread && gates.parameters[0] < work + bytes);
    tensors[0].dims.d[1] = 130;
    CHECK(runtime->onShapeChange(tensors, INPUTS, tensors + INPUTS, 1) != 0);
    delete plugin;
    CHECK(record->loaded == record->unloaded && record->retained == record->released);
}

} // namespace

int main() {
    auto *driver = dlopen("libcuda.so.1", RTLD_NOW);
    record = driver ? static_cast<stub_record *>(dlsym(driver, "stub")) : nullptr;
    if (!record) return std::fprintf(stderr, "the stand-in driver is not libcuda.so.1 here: %s\n", dlerror()), 2;
    maskedSimilarity();
    maskHead();
    if (!failures) std::printf("all as it should be\n");
    return failures != 0;
}
