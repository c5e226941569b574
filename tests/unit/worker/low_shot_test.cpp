#include "worker/evaluate/low_shot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "worker/evaluate/linear.h"

namespace tessera::evaluate {
namespace {

std::vector<int64_t> some_labels(int64_t rows, int64_t classes) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < rows; ++i) out.push_back((i * i + i / 3) % classes);
  return out;
}

TEST(DrawPerClass, has_exactly_so_many_of_every_class_and_no_row_twice) {
  for (int64_t classes = 2; classes <= 7; ++classes)
    for (int64_t draw = 0; draw < 50; ++draw) {
      std::vector<int64_t> labels = some_labels(400, classes);
      for (int64_t c = 0; c < classes; ++c) labels.insert(labels.end(), 12, c);  // every class occurs
      const auto rows = draw_per_class(labels, classes, 12, 5, draw);
      ASSERT_TRUE(rows.has_value()) << rows.error().message;
      std::map<int64_t, int64_t> count;
      for (const int64_t row : *rows) ++count[labels[size_t(row)]];
      ASSERT_EQ(int64_t(count.size()), classes);
      for (const auto& [label, n] : count) ASSERT_EQ(n, 12) << "class " << label;
      ASSERT_EQ(std::set<int64_t>(rows->begin(), rows->end()).size(), rows->size());
      ASSERT_TRUE(std::is_sorted(rows->begin(), rows->end()));
    }
}

TEST(DrawPerClass, names_the_class_that_is_too_small) {
  const auto rows = draw_per_class({0, 0, 0, 1}, 2, 2, 0, 0);
  ASSERT_FALSE(rows.has_value());
  EXPECT_EQ(rows.error().code, ErrorCode::kFixData);
  EXPECT_NE(rows.error().message.find("class 1 has 1"), std::string::npos) << rows.error().message;
}

TEST(DrawPercent, takes_the_share_without_replacement_and_differs_by_draw_and_seed) {
  for (const double percent : {0.01, 1.0, 10.0, 33.3, 100.0}) {
    const auto rows = draw_percent(2000, percent, 1, 0);
    EXPECT_EQ(int64_t(rows.size()), std::max<int64_t>(2, std::llround(percent * 20)));
    EXPECT_EQ(std::set<int64_t>(rows.begin(), rows.end()).size(), rows.size());
    EXPECT_EQ(rows, draw_percent(2000, percent, 1, 0));
    if (percent < 100) {
      EXPECT_NE(rows, draw_percent(2000, percent, 1, 1));
      EXPECT_NE(rows, draw_percent(2000, percent, 2, 0));
    }
  }
}

TEST(DrawPercent, every_row_is_drawn_equally_often) {
  std::vector<int64_t> count(50, 0);
  for (int64_t draw = 0; draw < 4000; ++draw)
    for (const int64_t row : draw_percent(50, 10, 3, draw)) ++count[size_t(row)];
  for (const int64_t n : count) EXPECT_NEAR(double(n), 400.0, 100.0);  // 5 sd
}

TEST(MeanError, is_the_textbook_one) {
  const MeanError e = mean_error({1, 2, 3, 4});
  EXPECT_DOUBLE_EQ(e.mean, 2.5);
  EXPECT_NEAR(e.standard_error, std::sqrt(5.0 / 3.0 / 4.0), 1e-12);
  EXPECT_EQ(mean_error({7}).standard_error, 0);
}

TEST(Confusion, counts_truth_by_row_and_leaves_out_classes_never_trained) {
  const auto counts = confusion({0, 0, 1, -1}, {0, 1, 1, 1}, 2);
  EXPECT_EQ(counts, (std::vector<std::vector<int64_t>>{{1, 1}, {0, 1}}));
}

TEST(ChooseSamples, parts_cover_all_and_share_none) {
  for (int64_t seed = 0; seed < 20; ++seed) {
    const auto train = choose_samples(500, 500, seed, 0), held = choose_samples(500, 500, seed, 1);
    std::set<SampleId> all(train.begin(), train.end());
    all.insert(held.begin(), held.end());
    EXPECT_EQ(all.size(), 500u);
    EXPECT_EQ(train.size() + held.size(), 500u);
    EXPECT_EQ(choose_samples(500, 40, seed, 0).size(), 40u);
  }
}

}  // namespace
}  // namespace tessera::evaluate
