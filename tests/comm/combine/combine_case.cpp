#include "tests/comm/combine/combine_case.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/numbers/half.hpp"

namespace kvmesh::test {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

template <class T>
T pick(std::mt19937_64& random, std::initializer_list<T> choices) {
  return choices.begin()[random() % choices.size()];
}

std::optional<Participation> random_participation(std::mt19937_64& random, std::int64_t tokens,
                                                  int ranks) {
  const unsigned density = pick(random, {0u, 10u, 30u, 60u, 100u});
  if (density == 100) return std::nullopt;
  Participation participation(tokens, ranks);
  for (std::int64_t t = 0; t < tokens; ++t) {
    // Density 0: one rank holds the whole token, as short sequences are placed.
    if (density == 0) participation.add(t, Rank{static_cast<int>(random() % at(ranks))});
    for (int r = 0; r < ranks && density > 0; ++r) {
      if (random() % 100 < density) participation.add(t, Rank{r});
    }
  }
  return participation;
}

/// Some owners hold keys, some do not, some are not set. Without a mask all ranks take part.
void choose_owners(CombineCase& test, std::mt19937_64& random, int ranks) {
  const bool is_whole = !test.participation;
  if (is_whole) test.participation.emplace(test.tokens, ranks);
  for (std::int64_t t = 0; t < test.tokens; ++t) {
    for (int r = 0; is_whole && r < ranks; ++r) test.participation->add(t, Rank{r});
    if (random() % 3 != 0)
      test.participation->set_owner(t, Rank{static_cast<int>(random() % at(ranks))});
  }
}

void fill(HeldPartial& held, const CombineCase& test, int rank, std::mt19937_64& random,
          double lse_offset) {
  std::normal_distribution<float> value;
  std::uniform_real_distribution<double> lse(-8, 8);
  for (std::int64_t t = 0; t < test.tokens; ++t) {
    if (!test.takes_part(t, rank)) continue;
    for (std::int64_t h = 0; h < test.heads; ++h) {
      const bool empty = random() % 6 == 0;
      held.lse_values[at(held.lse_index(t, h))] =
          empty ? kEmpty : static_cast<float>(lse(random) + lse_offset);
      if (empty) continue;
      for (std::int64_t d = 0; d < test.dim; ++d) {
        held.o_values[at(held.o_index(t, h) + d)] = value(random);
      }
    }
  }
}

void fill_partials(CombineCase& test, std::mt19937_64& random, int ranks) {
  const double lse_offset = pick(random, {0.0, 0.0, -80.0, 500.0});
  for (int r = 0; r < ranks; ++r) {
    const auto gap = static_cast<std::int64_t>(random() % 3);
    test.partials.emplace_back(test.tokens, test.heads, test.dim, gap);
    fill(test.partials.back(), test, r, random, lse_offset);
  }
}

/// Adds the row's expected values: the definition, in float64.
void append_expected_row(Expected& expected, const CombineCase& test, std::int64_t token,
                         std::int64_t head) {
  std::vector<double> lses;
  for (std::size_t r = 0; r < test.partials.size(); ++r) {
    const HeldPartial& held = test.partials[r];
    const bool takes_part = test.takes_part(token, static_cast<int>(r));
    lses.push_back(takes_part ? held.lse_values[at(held.lse_index(token, head))] : kEmpty);
  }
  double max = kEmpty;
  for (double lse : lses) max = lse > max ? lse : max;  // not NaN, which the sum shows
  double sum = 0;
  for (double lse : lses) sum += lse == kEmpty ? 0 : std::exp(lse - max);
  expected.lse.push_back(sum == 0 ? kEmpty : max + std::log(sum));
  for (std::int64_t d = 0; d < test.dim; ++d) {
    double value = 0;
    double magnitude = 0;
    for (std::size_t r = 0; r < test.partials.size(); ++r) {
      if (lses[r] == kEmpty) continue;
      const HeldPartial& held = test.partials[r];
      const double term =
          std::exp(lses[r] - max) / sum * held.o_values[at(held.o_index(token, head) + d)];
      value += term;
      magnitude += std::abs(term);
    }
    expected.o.push_back(value);
    expected.magnitude.push_back(magnitude);
  }
}

/// Makes a row of one of seven kinds, by its token and head.
void make_unusual(CombineCase& test, std::int64_t token, std::int64_t head) {
  const auto ranks = static_cast<std::int64_t>(test.partials.size());
  const auto lse = [&](std::int64_t rank) -> float& {
    HeldPartial& held = test.partials[at(rank % ranks)];
    return held.lse_values[at(held.lse_index(token, head))];
  };
  const auto set_all = [&](float value) {
    for (std::int64_t r = 0; r < ranks; ++r) lse(r) = value;
  };
  const auto set_o = [&](std::int64_t rank, float value) {
    HeldPartial& held = test.partials[at(rank % ranks)];
    std::fill_n(held.o_values.begin() + held.o_index(token, head), test.dim, value);
  };
  for (std::int64_t r = 0; r < ranks; ++r) {
    if (lse(r) == kEmpty) lse(r) = 0.5f, set_o(r, 2.0f);  // else O is NaN
  }
  switch ((token + head) % 7) {
    case 0:
      return set_all(kNan);
    case 1:
      lse(token) = kNan;
      return;
    case 2:
      set_all(kEmpty);
      lse(token) = kNan;
      return;
    case 3:
      return set_all(kEmpty);
    case 4:
      set_o(token, kNan);
      return;
    case 5:  // a key of NaN whose weight is 0 in float32
      lse(token + 1) = 150;
      lse(token) = -100;
      return set_o(token, kNan);
    default:
      return;
  }
}

IndexRange share_if(bool divided, std::int64_t count, int rank, int ranks) {
  return divided ? share_of(count, rank, ranks) : IndexRange{0, count};
}

}  // namespace

HeldPartial::HeldPartial(std::int64_t token_count, std::int64_t head_count, std::int64_t row_dim,
                         std::int64_t row_gap)
    : tokens(token_count),
      heads(head_count),
      dim(row_dim),
      gap(row_gap),
      o_values(at(tokens * (heads * (dim + gap) + gap)), kNan),
      lse_values(at(tokens * (heads + gap)), kNan) {}

Partial HeldPartial::view() {
  return {
      {o_values.data(),
       Dtype::kFloat32,
       {tokens, heads, dim},
       {heads * (dim + gap) + gap, dim + gap, 1}},
      {lse_values.data(), Dtype::kFloat32, {tokens, heads}, {heads + gap, 1}},
  };
}

HeldPartial with_gap(const HeldPartial& partial, std::int64_t gap) {
  HeldPartial spread(partial.tokens, partial.heads, partial.dim, gap);
  for (std::int64_t t = 0; t < partial.tokens; ++t) {
    for (std::int64_t h = 0; h < partial.heads; ++h) {
      std::copy_n(partial.o_values.begin() + partial.o_index(t, h), partial.dim,
                  spread.o_values.begin() + spread.o_index(t, h));
      spread.lse_values[at(spread.lse_index(t, h))] =
          partial.lse_values[at(partial.lse_index(t, h))];
    }
  }
  return spread;
}

std::int64_t HeldPartial::o_index(std::int64_t token, std::int64_t head) const {
  return token * (heads * (dim + gap) + gap) + head * (dim + gap);
}

std::int64_t HeldPartial::lse_index(std::int64_t token, std::int64_t head) const {
  return token * (heads + gap) + head;
}

bool CombineCase::takes_part(std::int64_t token, int rank) const {
  return !participation || participation->has(token, Rank{rank});
}

bool CombineCase::owns(std::int64_t token, int rank) const {
  return scatter != Scatter::kOwner || participation->owner(token).value == rank;
}

void Result::clear_rows_of_others(const CombineCase& test, int rank) {
  if (test.scatter != Scatter::kOwner) return;
  const std::size_t floats = at(test.heads * test.dim), rows = at(test.heads);
  for (std::int64_t t = 0; t < test.tokens; ++t) {
    if (test.owns(t, rank)) continue;
    std::fill_n(o.begin() + t * static_cast<std::int64_t>(floats), floats, 0.0f);
    std::fill_n(lse.begin() + t * static_cast<std::int64_t>(rows), rows, 0.0f);
  }
}

std::string CombineCase::describe() const {
  return fmt::format("{} tokens, {} heads, dim {}, scatter {}, {}", tokens, heads, dim,
                     name(scatter), participation ? "with a mask" : "without a mask");
}

CombineCase random_case(std::mt19937_64& random, int ranks) {
  CombineCase test;
  test.tokens = pick<std::int64_t>(random, {0, 1, 1, 2, 3, 5, 9, 40});
  test.heads = pick<std::int64_t>(random, {1, 2, 3, 8, 9, 13});
  test.dim = pick<std::int64_t>(random, {1, 3, 16, 64, 80, 130});
  test.scatter = pick(random, {Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner});
  test.participation = random_participation(random, test.tokens, ranks);
  if (test.scatter == Scatter::kOwner) choose_owners(test, random, ranks);
  fill_partials(test, random, ranks);
  return test;
}

CombineCase full_case(int ranks, std::int64_t tokens, std::int64_t heads, std::int64_t dim,
                      Scatter scatter) {
  std::mt19937_64 random(7);
  CombineCase test{tokens, heads, dim, scatter, std::nullopt, {}};
  fill_partials(test, random, ranks);
  return test;
}

CombineCase unusual_case(int ranks, Scatter scatter) {
  CombineCase test = full_case(ranks, 16, 9, 8, scatter);
  for (std::int64_t t = 0; t < test.tokens; ++t) {
    for (std::int64_t h = 0; h < test.heads; ++h) make_unusual(test, t, h);
  }
  return test;
}

Expected expected_of(const CombineCase& test, int rank) {
  const int ranks = static_cast<int>(test.partials.size());
  const IndexRange tokens = share_if(test.scatter == Scatter::kTokens, test.tokens, rank, ranks);
  const IndexRange heads = share_if(test.scatter == Scatter::kHeads, test.heads, rank, ranks);
  Expected expected{tokens.size(), heads.size(), {}, {}, {}};
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    for (std::int64_t h = heads.begin; h < heads.end; ++h) {
      if (test.owns(t, rank)) {
        append_expected_row(expected, test, t, h);
      } else {
        expected.o.resize(expected.o.size() + at(test.dim));
        expected.magnitude.resize(expected.o.size());
        expected.lse.push_back(0);
      }
    }
  }
  return expected;
}

Result run_case(CombineWay& way, CombineCase& test, int rank, CombineStrategy strategy, Dtype dtype,
                std::int64_t gap) {
  const int ranks = static_cast<int>(test.partials.size());
  const std::int64_t tokens =
      share_if(test.scatter == Scatter::kTokens, test.tokens, rank, ranks).size();
  const std::int64_t heads =
      share_if(test.scatter == Scatter::kHeads, test.heads, rank, ranks).size();
  const std::int64_t stride = test.dim + gap;

  // All bytes 0xFF are a NaN in each of the three types; float32 is wide enough for all of them.
  std::vector<float> o(at(tokens * heads * stride), std::bit_cast<float>(0xFFFF'FFFF));
  std::vector<float> lse(at(tokens * heads), kNan);
  const CombineOutput output{
      .o = {o.data(), dtype, {tokens, heads, test.dim}, {heads * stride, stride, 1}},
      .lse = tensor(lse.data(), {tokens, heads}),
  };
  const CombineOptions options{
      .scatter = test.scatter,
      .strategy = test.scatter == Scatter::kOwner ? CombineStrategy::kAuto : strategy,
      .participation = test.participation ? &*test.participation : nullptr,
  };
  combine_once(way, test.partials[at(rank)].view(), options, output);

  Result result{{}, lse};
  for (std::int64_t row = 0; row < tokens * heads; ++row) {
    for (std::int64_t d = 0; d < stride; ++d) {
      const float value = load_element(o.data(), dtype, row * stride + d);
      if (d < test.dim) {
        result.o.push_back(value);
      } else {
        EXPECT_TRUE(std::isnan(value)) << "row " << row << ": wrote " << value << " into a gap";
      }
    }
  }
  result.clear_rows_of_others(test, rank);
  return result;
}

void combine_once(CombineWay& way, const Partial& mine, const CombineOptions& options,
                  const CombineOutput& output) {
  way.plan(shape_of(mine), options, {});
  way.check_run(mine, output);
  way.run(mine, output, {});
}

bool same_bits(const Result& a, const Result& b) {
  const auto same = [](const std::vector<float>& x, const std::vector<float>& y) {
    return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin(), [](float p, float q) {
             return std::bit_cast<std::uint32_t>(p) == std::bit_cast<std::uint32_t>(q);
           });
  };
  return same(a.o, b.o) && same(a.lse, b.lse);
}

namespace {

/// `error` is NaN where the expected value is.
void expect_near(float value, double expected, double error) {
  if (std::isnan(expected)) {
    ASSERT_TRUE(std::isnan(value)) << value;
  } else {
    ASSERT_NEAR(value, expected, error);
  }
}

}  // namespace

void expect_close(const Result& result, const Expected& expected, std::int64_t dim) {
  constexpr double kEpsilon = 0x1p-24;  // float32, rounded to nearest
  ASSERT_EQ(result.o.size(), expected.o.size());
  ASSERT_EQ(result.lse.size(), expected.lse.size());
  for (std::size_t row = 0; row < expected.lse.size(); ++row) {
    const double lse = expected.lse[row];
    SCOPED_TRACE("row " + std::to_string(row));
    if (lse == kEmpty) {
      ASSERT_EQ(result.lse[row], kEmpty);
    } else {
      ASSERT_NO_FATAL_FAILURE(
          expect_near(result.lse[row], lse, kEpsilon * (2 * std::abs(lse) + 16)));
    }
    // The merged LSE is rounded to float32, and each weight is exp of a difference from it, so an
    // error of |LSE| * epsilon there is relative here. The rest is the roundings of the sum.
    const double relative = kEpsilon * ((lse == kEmpty ? 0 : 2 * std::abs(lse)) + 32);
    for (std::size_t d = 0; d < at(dim); ++d) {
      const std::size_t i = row * at(dim) + d;
      ASSERT_NO_FATAL_FAILURE(
          expect_near(result.o[i], expected.o[i], relative * expected.magnitude[i]))
          << "element " << d;
    }
  }
}

}  // namespace kvmesh::test
