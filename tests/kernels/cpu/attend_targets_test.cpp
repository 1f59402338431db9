// The kernel as compiled for each instruction set that this machine has.
#include "tests/support/attention_case.hpp"
#include "tests/support/instruction_sets.hpp"

namespace kvmesh::test {
namespace {

class AttendTargets : public OnInstructionSet {};

CaseSpec two_sequences(int k_dim, int v_dim, Dtype dtype) {
  CaseSpec spec{.shape = {7, 1, k_dim, v_dim, 5}, .dtype = dtype, .q_dtype = dtype};
  spec.sequences = {{.q_len = 9, .kv_len = 150}, {.q_len = 1, .kv_len = 2100}};
  spec.options.mask = mods::sliding_window(1500);
  spec.options.score = mods::soft_cap(5.0f);
  return spec;
}

TEST_P(AttendTargets, MatchFloat64) {
  for (Dtype dtype : kDtypes) {
    for (const auto& [k_dim, v_dim] : {std::pair{128, 80}, std::pair{33, 7}}) {
      AttentionCase c(two_sequences(k_dim, v_dim, dtype));
      EXPECT_TRUE(c.matches(c.run())) << name(dtype) << ", dims " << k_dim << " and " << v_dim;
    }
  }
}

// Blocks of 16 rows and more have products of their own: whole vectors of rows and parts of them,
// queries in the type of the keys and in another one, scales that are no power of two or negative.
TEST_P(AttendTargets, MatchFloat64WithManyRows) {
  for (Dtype dtype : kDtypes) {
    for (Dtype q_dtype : {dtype, Dtype::kFloat32}) {
      for (const auto& [queries, scale] :
           {std::pair{8, 0.3f}, std::pair{9, -0.5f}, std::pair{17, 1e-3f}, std::pair{32, 0.0f}}) {
        CaseSpec spec{
            .shape = {2, 1, queries == 9 ? 34 : 64, 48, 5}, .dtype = dtype, .q_dtype = q_dtype};
        spec.sequences = {{.q_len = queries, .kv_len = 150}};
        spec.options.mask = mods::causal();
        spec.options.scale = scale;
        AttentionCase c(spec);
        EXPECT_TRUE(c.matches(c.run())) << name(dtype) << ", " << name(q_dtype) << " queries of "
                                        << queries << " tokens, scale " << scale;
      }
    }
  }
}

TEST_P(AttendTargets, NanStaysInItsRow) {
  for (Dtype dtype : kDtypes) {
    CaseSpec spec = two_sequences(32, 32, dtype);
    spec.options.score = {};
    spec.options.mask = mods::sliding_window(3);
    for (const bool in_key : {true, false}) {
      AttentionCase c(spec);
      in_key ? c.poison_key(0, 145) : c.poison_value(0, 145);
      const auto sees = [&](std::int64_t token, std::int32_t) {
        return token < 9 && c.position_of(0, token) >= 145 && c.position_of(0, token) < 148;
      };
      EXPECT_TRUE(c.matches(c.run(), sees)) << name(dtype) << (in_key ? ", key" : ", value");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendTargets, testing::ValuesIn(instruction_sets()),
                         instruction_set_name);

}  // namespace
}  // namespace kvmesh::test
