// The procedural dataset: deterministic, balanced, labels that tell what is in the picture, colours that tell nothing.
#include "data_loader/dataset/scenes.h"

#include <cmath>
#include <map>
#include <thread>

#include "common/hash.h"
#include "data_loader/dataset/dataset.h"
#include "data_loader/dataset/scenes/render.h"
#include "data_loader/dataset/scenes/scene.h"
#include "data_loader/dataset/scenes/shapes.h"
#include "data_loader/dataset/scenes_cache.h"
#include "data_loader/decode/decode.h"
#include "tests/unit/data_loader/dataset_files.h"

namespace tessera::data {
namespace {

using scenes::Scene;

TEST(Scenes, SameBytesForAnyThreadsAndShardsOfAnySize) {
  TemporaryFolder folder;
  ScenesOptions options;
  options.count = 20, options.size = 32, options.seed = 3, options.shard_size = 8, options.threads = 1;
  ASSERT_TRUE(make_scenes(folder / "one", options));
  options.threads = 3;
  const auto written = make_scenes(folder / "three", options);
  ASSERT_TRUE(written);
  EXPECT_EQ(written->shards, 3);
  for (const char* name : {"scenes-000000.tar", "scenes-000001.tar", "scenes-000002.tar", "classes.txt"})
    EXPECT_EQ(*read_file(folder / ("one/" + std::string(name))), *read_file(folder / ("three/" + std::string(name)))) << name;
  EXPECT_NE(make_scene_picture(3, 0, 32).rgb, make_scene_picture(4, 0, 32).rgb);
  EXPECT_NE(make_scene_picture(3, 0, 32).rgb, make_scene_picture(3, 1, 32).rgb);
}

// The pictures are data that runs are compared by: other bytes mean another scenes version (scenes_cache.cpp).
TEST(Scenes, PicturesAreTheOnesOfThisVersion) {
  Hasher hasher;
  for (uint64_t i = 0; i < 30; ++i) {
    const ScenePicture picture = make_scene_picture(0, i, 64);
    hasher.add_bytes(picture.rgb.data(), picture.rgb.size());
    hasher.add_string(picture.json);
  }
  EXPECT_EQ(to_hex(hasher.finish()), "a037a677b5de5dced0a6f01bb81cdacf");
}

// An object that is painted anew changes every pixel that the mask gives it, and none but those and their anti-aliased neighbours (and, rarely, one
// where another object leaves less of it than a centre ray meets).
TEST(Scenes, MasksSayWhichObjectCoversEachPixel) {
  constexpr int kSize = 48;
  int64_t covered = 0, seen_objects = 0, drawn_objects = 0, changed = 0, strayed = 0;
  for (uint64_t i = 0; i < 40; ++i) {
    const Scene scene = scenes::draw_scene(5, i);
    const std::vector<uint8_t> mask = make_scene_mask(5, i, kSize);
    std::vector<uint8_t> full(kSize * kSize * 3), other(full.size());
    scenes::render(scene, kSize, full.data());
    drawn_objects += int64_t(scene.objects.size());
    for (size_t object = 0; object < scene.objects.size(); ++object) {
      Scene painted = scene;
      painted.objects[object].material.first = painted.objects[object].material.second = scenes::Vec{3, 0, 0};
      painted.objects[object].material.grain = 0;
      scenes::render(painted, kSize, other.data());
      const auto is = [&](int y, int x) { return y >= 0 && x >= 0 && y < kSize && x < kSize && mask[size_t(y * kSize + x)] == 255 - 16 * object; };
      int64_t own = 0;
      for (int y = 0; y < kSize; ++y)
        for (int x = 0; x < kSize; ++x) {
          const size_t p = size_t(y * kSize + x);
          own += is(y, x);
          if (is(y, x)) changed += !std::equal(&full[p * 3], &full[p * 3 + 3], &other[p * 3]);
          bool near = false;
          for (int dy = -1; dy <= 1; ++dy)
            for (int dx = -1; dx <= 1; ++dx) near = near || is(y + dy, x + dx);
          strayed += !near && !std::equal(&full[p * 3], &full[p * 3 + 3], &other[p * 3]);
        }
      covered += own, seen_objects += own > 0;
    }
  }
  EXPECT_EQ(changed, covered) << "every pixel of an object shows its paint";
  EXPECT_LT(strayed, covered / 1000);
  EXPECT_GT(seen_objects, drawn_objects * 95 / 100);
  EXPECT_GT(covered, 40 * kSize * kSize / 12);
}

// Masks as a dataset of their own: the keys and labels of the images, pictures that decode to the masks.
TEST(Scenes, MasksAreShardsLikeTheImages) {
  TemporaryFolder folder;
  ::setenv("TESSERA_CACHE", (folder / "cache").c_str(), 1);
  OpenOptions images, masks;
  images.data_path = "scenes:7:32:9", masks.data_path = "scene-masks:7:32:9";
  const auto a = open_dataset(images), b = open_dataset(masks);
  ::unsetenv("TESSERA_CACHE");
  ASSERT_TRUE(a && b);
  ASSERT_EQ((*b)->manifest->sample_count(), 7);
  for (SampleId id = 0; id < 7; ++id) EXPECT_EQ((*a)->manifest->key(id), (*b)->manifest->key(id));
  EXPECT_NE((*a)->base, (*b)->base);
  SampleReader reader(*b);
  for (SampleId id = 0; id < 7; ++id) {
    const auto bytes = reader.read(id);
    ASSERT_TRUE(bytes);
    const auto image = decode({reinterpret_cast<const uint8_t*>(bytes->data()), bytes->size()});
    ASSERT_TRUE(image);
    const std::vector<uint8_t> grey = make_scene_mask(9, uint64_t(id), 32);
    for (size_t p = 0; p < grey.size(); ++p) ASSERT_EQ(image->rgb[p * 3 + 1], grey[p]) << id << " " << p;
  }
}

TEST(Scenes, ClassesAreBalancedInEveryRunOfSix) {
  for (uint64_t first = 0; first < 600; first += 6) {
    int seen = 0;
    for (uint64_t i = first; i < first + 6; ++i) seen |= 1 << scenes::scene_class(9, i);
    EXPECT_EQ(seen, 63) << first;
  }
}

TEST(Scenes, LabelsTellWhatIsThere) {
  std::map<size_t, int> counts;
  double sum = 0;
  constexpr int kScenes = 1200;
  for (uint64_t i = 0; i < kScenes; ++i) {
    const Scene scene = scenes::draw_scene(1, i);
    ++counts[scene.objects.size()];
    double nearest = 1e9;
    for (const auto& object : scene.objects) {
      EXPECT_EQ(int(object.shape), scene.label);
      nearest = std::min(nearest, scenes::length(object.centre - scene.eye));
      EXPECT_NEAR(object.centre.y, scenes::resting_height(object), 1e-12);
    }
    EXPECT_NEAR(nearest, scene.distance, 1e-9);
    sum += scene.distance;
    EXPECT_GE(scene.distance, 1.79);
    EXPECT_LE(scene.distance, 5.41);
  }
  ASSERT_EQ(counts.size(), 6u);
  EXPECT_NEAR(counts[1], kScenes * 0.3, 70);
  for (size_t count = 2; count <= 6; ++count) EXPECT_NEAR(counts[count], kScenes * 0.14, 55) << count;
  EXPECT_NEAR(sum / kScenes, 3.6 / std::log(3.0), 0.1);  // uniform in the logarithm from 1.8 to 5.4
}

// Count and distance are drawn apart from each other and from the class.
TEST(Scenes, LabelsAreIndependent) {
  std::map<int, std::pair<double, int>> distance_of_count, distance_of_class, count_of_class;
  for (uint64_t i = 0; i < 3000; ++i) {
    const Scene scene = scenes::draw_scene(2, i);
    const int count = int(scene.objects.size());
    distance_of_count[count].first += scene.distance, ++distance_of_count[count].second;
    distance_of_class[scene.label].first += scene.distance, ++distance_of_class[scene.label].second;
    count_of_class[scene.label].first += count, ++count_of_class[scene.label].second;
  }
  for (const auto& [count, sum] : distance_of_count) EXPECT_NEAR(sum.first / sum.second, 3.28, 0.2) << count;
  for (const auto& [label, sum] : distance_of_class) EXPECT_NEAR(sum.first / sum.second, 3.28, 0.2) << label;
  for (const auto& [label, sum] : count_of_class) EXPECT_NEAR(sum.first / sum.second, 3.1, 0.35) << label;
}

// Mean colours of the classes lie within what chance makes of them.
TEST(Scenes, ColourTellsNothingOfTheClass) {
  constexpr int kPerClass = 100;
  double mean[6][3] = {}, square[6][3] = {};
  for (uint64_t i = 0; i < 6 * kPerClass; ++i) {
    const ScenePicture picture = make_scene_picture(11, i, 24);
    double sum[3] = {};
    for (size_t p = 0; p < picture.rgb.size(); ++p) sum[p % 3] += picture.rgb[p];
    for (int c = 0; c < 3; ++c) {
      const double value = sum[c] / double(picture.rgb.size() / 3);
      mean[picture.label][c] += value / kPerClass, square[picture.label][c] += value * value / kPerClass;
    }
  }
  for (int c = 0; c < 3; ++c) {
    double all = 0;
    for (int k = 0; k < 6; ++k) all += mean[k][c] / 6;
    for (int k = 0; k < 6; ++k) {
      const double error = std::sqrt((square[k][c] - mean[k][c] * mean[k][c]) / kPerClass);
      EXPECT_LT(std::abs(mean[k][c] - all), 3.5 * error) << scenes::kShapeNames[size_t(k)] << " channel " << c;
    }
  }
}

// Rays from all sides: a hit lies on the shape's surface, its normal is of unit length and faces the ray.
TEST(Scenes, RaysMeetShapesFromOutside) {
  for (int s = 0; s < scenes::kShapeCount; ++s) {
    const auto shape = scenes::Shape(s);
    int hits = 0;
    for (int i = 0; i < 4000; ++i) {
      const auto around = scenes::sin_cos_turns(i * 0.61803398875), tilt = scenes::sin_cos_turns(0.5 * (i % 97) / 97.0 - 0.25);
      const scenes::Vec from = scenes::Vec{around.cos * tilt.cos, tilt.sin, around.sin * tilt.cos} * 3.0;
      const scenes::Vec aim{0.4 * std::sin(i * 1.3), 0.4 * std::sin(i * 2.1), 0.4 * std::cos(i * 0.7)};
      const scenes::Vec direction = aim - from;
      scenes::Hit hit;
      if (!scenes::meet(shape, from, direction, &hit)) continue;
      ++hits;
      const scenes::Vec point = from + direction * hit.t;
      EXPECT_LE(scenes::length(point), scenes::bounding_radius(shape) + 1e-3);
      EXPECT_NEAR(scenes::length(hit.normal), 1, 1e-6);
      EXPECT_LT(scenes::dot(hit.normal, direction), 1e-3);
    }
    EXPECT_GT(hits, 2000) << scenes::kShapeNames[size_t(s)];
  }
}

TEST(Scenes, SinesAreSines) {
  for (int i = -1000; i < 3000; ++i) {
    const auto value = scenes::sin_cos_turns(i / 1000.0);
    EXPECT_NEAR(value.sin, std::sin(i / 1000.0 * 2 * M_PI), 1e-8);
    EXPECT_NEAR(value.cos, std::cos(i / 1000.0 * 2 * M_PI), 1e-8);
  }
}

TEST(Scenes, PathsAreRead) {
  const auto full = parse_scenes_path("scenes:200:32:7");
  ASSERT_TRUE(full);
  EXPECT_EQ(full->count, 200);
  EXPECT_EQ(full->size, 32);
  EXPECT_EQ(full->seed, 7u);
  EXPECT_EQ(parse_scenes_path("scenes:10000")->size, 64);
  EXPECT_EQ(full->pictures, ScenePictures::kImages);
  EXPECT_EQ(parse_scenes_path("scene-masks:200:32:7")->pictures, ScenePictures::kMasks);
  EXPECT_TRUE(is_scenes_path("scene-masks:20"));
  for (const char* other : {"scenes", "scene-masks", "scenes/x:20", "scene-maskss:20", "my-scenes:20"}) EXPECT_FALSE(is_scenes_path(other)) << other;
  for (const char* text : {"scenes:", "scenes:x", "scenes:10:", "scenes:10:4", "scenes:10:64:1:2", "scenes:-5", "scenes:0"}) {
    const auto parsed = parse_scenes_path(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_EQ(exit_code_of(parsed.error()), exit_codes::kConfig);
  }
  TemporaryFolder folder;
  write_test_file(folder / "s/file", "x");
  EXPECT_EQ(make_scenes(folder / "s", {}).error().code, ErrorCode::kUsage) << "never writes into a folder that has files";
}

// Two processes (here: threads, flock is per open file) that want the same scenes make them once.
TEST(Scenes, CacheIsFilledOnce) {
  TemporaryFolder folder;
  ::setenv("TESSERA_CACHE", (folder / "cache").c_str(), 1);
  std::vector<std::string> found(3);
  {
    std::vector<std::jthread> threads;
    for (auto& path : found) threads.emplace_back([&path] { path = ensure_scenes("scenes:30:16:1", 1).value_or("failed"); });
  }
  ::unsetenv("TESSERA_CACHE");
  for (const auto& path : found) EXPECT_EQ(path, found[0]);
  EXPECT_TRUE(std::filesystem::exists(found[0] + "/scenes-000000.tar"));
  EXPECT_FALSE(std::filesystem::exists(found[0] + ".partial"));
}

}  // namespace
}  // namespace tessera::data
