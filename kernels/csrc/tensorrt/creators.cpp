// What IPluginRegistry::loadLibrary looks for in this library.

#include "mask_head_plugin.h"
#include "masked_similarity_plugin.h"
#include "report.h"

extern "C" DPM_API void setLoggerFinder(nvinfer1::ILoggerFinder *finder) {
    if (finder) dpm_edge::setLogger(finder->findLogger());
}

extern "C" DPM_API nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count) {
    static dpm_edge::MaskedSimilarityCreator similarity;
    static dpm_edge::MaskHeadCreator maskHead;
    static nvinfer1::IPluginCreatorInterface *const creators[] = {&similarity, &maskHead};
    count = 2;
    return creators;
}
