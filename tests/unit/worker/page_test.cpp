#include "worker/evaluate/curves.h"

#include <gtest/gtest.h>

namespace tessera::evaluate {
namespace {

TEST(Base64, test_vectors_of_rfc_4648) {
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(base64("foob"), "Zm9vYg==");
  EXPECT_EQ(base64("fooba"), "Zm9vYmE=");
  EXPECT_EQ(base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(base64(std::string("\xff\xfe\x00\x80", 4)), "//4AgA==");
}

TEST(HtmlText, nothing_that_opens_a_tag_or_ends_an_attribute_is_left) {
  EXPECT_EQ(html_text("<script>&\"'"), "&lt;script&gt;&amp;&quot;&#39;");
  EXPECT_EQ(svg_curve("<b>", {{0, 1}, {1, 2}}).find("<b>"), std::string::npos);
}

TEST(Thinned, keeps_the_mean_and_the_order) {
  Points points;
  for (int i = 0; i < 12345; ++i) points.emplace_back(i, 2.0 * i);
  const Points few = thinned(points, 1000);
  ASSERT_EQ(few.size(), 1000u);
  for (size_t i = 1; i < few.size(); ++i) EXPECT_LT(few[i - 1].first, few[i].first);
  for (const auto& [step, value] : few) EXPECT_DOUBLE_EQ(value, 2 * step);
  EXPECT_EQ(thinned(points, 20000).size(), points.size());
}

TEST(SvgCurve, one_point_is_no_curve_and_a_flat_one_is_drawn) {
  EXPECT_EQ(svg_curve("loss", {{0, 1}}), "");
  const std::string flat = svg_curve("loss", {{0, 1}, {5, 1}});
  EXPECT_NE(flat.find("<polyline"), std::string::npos);
  EXPECT_EQ(flat.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace tessera::evaluate
