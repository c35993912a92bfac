// The TensorRT plugin through its own interface, as TensorRT calls it, against the stand-in driver.

#include <cstdio>
#include <cstring>
#include <dlfcn.h>

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

} // namespace

int main() {
    using nvinfer1::DataType;
    using nvinfer1::PluginCapabilityType;
    auto *driver = dlopen("libcuda.so.1", RTLD_NOW);
    auto *record = driver ? static_cast<stub_record *>(dlsym(driver, "stub")) : nullptr;
    if (!record) return std::fprintf(stderr, "the stand-in driver is not libcuda.so.1 here: %s\n", dlerror()), 2;

    int32_t count = 0;
    auto *creator = static_cast<nvinfer1::IPluginCreatorV3One *>(getCreators(count)[0]);
    CHECK(count == 1 && std::strcmp(creator->getPluginName(), "DpmMaskedSimilarity") == 0);
    CHECK(std::strcmp(creator->getPluginNamespace(), "dpm_edge") == 0);
    auto *original = creator->createPlugin("similarity", creator->getFieldNames(), nvinfer1::TensorRTPhase::kBUILD);
    auto *plugin = original->clone();
    delete original; // TensorRT does so, too
    auto *build = static_cast<nvinfer1::IPluginV3OneBuild *>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    auto *runtime =
        static_cast<nvinfer1::IPluginV3OneRuntime *>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));

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
    dynamic[2].desc.dims.d[1] = 700;
    CHECK(build->configurePlugin(dynamic, 3, dynamic + 3, 1) != 0);
    dpm_targets const targets = {0x30000, 0, DPM_FLOAT16, 751, 768};
    CHECK(build->getWorkspaceSize(dynamic, 3, dynamic + 3, 1) == dpm_masked_similarity_workspace(&targets, 8));
    DataType output{};
    DataType const inputs[] = {DataType::kFLOAT, DataType::kFLOAT, DataType::kHALF};
    CHECK(build->getOutputDataTypes(&output, 1, inputs, 3) == 0 && output == DataType::kFLOAT);

    auto const address = [](uint64_t value) { return reinterpret_cast<void *>(value); };
    void const *const in[] = {address(0x10000), address(0x20000), address(0x30000)};
    void *const out[] = {address(0x40000)};
    CHECK(runtime->onShapeChange(tensors, 3, tensors + 3, 1) == 0);
    CHECK(runtime->enqueue(tensors, tensors + 3, in, out, address(0x50000), nullptr) == 0);
    CHECK(record->launched == 2 && record->retained == 1);
    auto const &similarity = record->launches[1];
    for (size_t i = 0; i < dpm_image_count; ++i)
        if (dpm_images[i].cubin == similarity.image)
            CHECK(std::strcmp(dpm_images[i].variant, "masked_similarity_small_fp16") == 0);
    CHECK(similarity.parameters[3] == 0x30000); /* QM, MM, GAIN, T */
    auto *attached = runtime->attachToContext(nullptr);
    delete plugin;
    CHECK(record->released == 0); // the clone still uses the kernels
    delete attached;
    CHECK(record->released == 1 && record->loaded == record->unloaded);
    if (!failures) std::printf("all as it should be\n");
    return failures != 0;
}
