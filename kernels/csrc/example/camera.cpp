// A camera program on libdpm_kernels: each frame's people are cut out on the GPU, and looked up in a gallery there.
//
//     camera [frames]
//
// The network between the two steps is the application's (TensorRT, or any other engine that reads `crops` and writes
// `features` and `masks`); here its outputs are set once, so that the program runs by itself. Frames and boxes are made
// up; yours come from a decoder and a detector. Everything stays on one stream; one small download per frame.

#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <vector>

#include "dpm_kernels.h"

namespace {

void check(dpm_status status) {
    if (status != DPM_OK) throw std::runtime_error(dpm_last_error());
}

class Gpu {
  public:
    explicit Gpu(int device) { check(dpm_open(device, &kernels)); }
    ~Gpu() { dpm_close(kernels); }
    Gpu(Gpu const &) = delete;
    Gpu &operator=(Gpu const &) = delete;
    operator dpm_kernels *() const { return kernels; }

  private:
    dpm_kernels *kernels = nullptr;
};

// An array on the device, freed with its owner.
template <typename T> class Buffer {
  public:
    Buffer(Gpu const &gpu, size_t count) : gpu(gpu), count(count) { check(dpm_allocate(gpu, count * sizeof(T), &memory)); }
    ~Buffer() { dpm_free(gpu, memory); }
    Buffer(Buffer const &) = delete;
    Buffer &operator=(Buffer const &) = delete;
    operator dpm_address() const { return memory; }
    void upload(std::vector<T> const &from) { check(dpm_upload(gpu, memory, from.data(), from.size() * sizeof(T))); }
    std::vector<T> download() const {
        std::vector<T> to(count);
        check(dpm_download(gpu, to.data(), memory, count * sizeof(T)));
        return to;
    }

  private:
    Gpu const &gpu;
    size_t count;
    dpm_address memory = 0;
};

void run(int frames) {
    constexpr int height = 1080, width = 1920, people = 3, crop_height = 256, crop_width = 128;
    constexpr int features_width = 768, gallery_rows = 4096, results = 5;
    std::mt19937 random(0);
    std::normal_distribution<float> normal;

    Gpu gpu(0);
    std::printf("compute capability %d.%d\n", dpm_capability(gpu) / 10, dpm_capability(gpu) % 10);

    Buffer<unsigned char> picture(gpu, size_t(height) * width * 3);
    Buffer<float> boxes(gpu, people * 4), affine(gpu, 6);
    Buffer<uint16_t> crops(gpu, size_t(people) * 3 * crop_height * crop_width); // float16: the network's input
    Buffer<float> features(gpu, people * features_width), masks(gpu, people * features_width); // the network's outputs
    Buffer<float> gallery(gpu, size_t(gallery_rows) * features_width), scores(gpu, people * results);
    Buffer<int64_t> rows(gpu, people * results);

    float const mean[3] = {0.5f, 0.5f, 0.5f}, spread[3] = {0.5f, 0.5f, 0.5f};
    std::vector<float> normalisation(6), stored(size_t(gallery_rows) * features_width);
    dpm_affine(mean, spread, normalisation.data());
    affine.upload(normalisation);
    for (auto &value : stored) value = normal(random) / 27.7f; // rows of length about 1
    gallery.upload(stored);
    features.upload({stored.begin(), stored.begin() + people * features_width}); // the first three of the gallery
    masks.upload(std::vector<float>(people * features_width, 0.5f));

    dpm_targets const targets = {gallery, 0, DPM_FLOAT32, gallery_rows, features_width};
    size_t const bytes = dpm_masked_topk_workspace(&targets, people, results);
    if (bytes == 0) throw std::runtime_error(dpm_last_error());
    Buffer<unsigned char> workspace(gpu, bytes);

    for (int frame = 0; frame < frames; ++frame) {
        picture.upload(std::vector<unsigned char>(size_t(height) * width * 3, static_cast<unsigned char>(frame)));
        boxes.upload({100, 100, 200, 400, 600.5f, 80, 760, 500, 1500, 300, 1700, 900}); // x0 y0 x1 y1 of each person
        dpm_frame const bgr = {picture, 0, height, width, 3 * width, 0};
        check(dpm_crop_resize_normalize(gpu, &bgr, boxes, people, affine, crop_height, crop_width, crops, nullptr));
        // here: enqueue the network on the same stream, crops → features, masks
        check(dpm_masked_topk(gpu, &targets, features, masks, people, results, 0, workspace, scores, rows, nullptr));
        check(dpm_synchronize(gpu, nullptr));
        auto const found = rows.download();
        auto const similarity = scores.download();
        for (int person = 0; person < people; ++person)
            std::printf("frame %d, person %d: gallery row %lld, similarity %.3f\n", frame, person,
                        static_cast<long long>(found[size_t(person) * results]), similarity[size_t(person) * results]);
    }
}

} // namespace

int main(int count, char **arguments) {
    try {
        run(count > 1 ? std::atoi(arguments[1]) : 1);
        return 0;
    } catch (std::exception const &error) {
        std::fprintf(stderr, "camera: %s\n", error.what());
        return 1;
    }
}
