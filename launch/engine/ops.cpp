#include "launch/engine/ops.hpp"

#include <array>
#include <cmath>

namespace kvmesh::engine {

void rms_norm(std::span<const float> x, std::span<const float> weight, float epsilon,
              std::span<float> out) {
  // Sixteen independent sums: the compiler keeps them in vectors.
  std::array<float, 16> sums{};
  std::size_t i = 0;
  for (; i + sums.size() <= x.size(); i += sums.size()) {
    for (std::size_t lane = 0; lane < sums.size(); ++lane) sums[lane] += x[i + lane] * x[i + lane];
  }
  double sum = 0.0;
  for (float part : sums) sum += static_cast<double>(part);
  for (; i < x.size(); ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double mean = sum / static_cast<double>(x.size());
  const auto scale = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(epsilon)));
  for (i = 0; i < x.size(); ++i) out[i] = x[i] * scale * weight[i];
}

void add_to(std::span<float> target, std::span<const float> values) {
  for (std::size_t i = 0; i < target.size(); ++i) target[i] += values[i];
}

Rope::Rope(std::int64_t dims, double base, std::span<const float> factors) {
  for (std::int64_t i = 0; i < dims / 2; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(dims);
    const auto pair = static_cast<std::size_t>(i);
    const double factor = factors.empty() ? 1.0 : static_cast<double>(factors[pair]);
    frequencies_.push_back(std::pow(base, exponent) / factor);
  }
}

void Rope::set_positions(std::span<const std::int64_t> positions) {
  cosines_.clear();
  sines_.clear();
  for (std::int64_t position : positions) {
    for (double frequency : frequencies_) {
      const double angle = static_cast<double>(position) * frequency;
      cosines_.push_back(static_cast<float>(std::cos(angle)));
      sines_.push_back(static_cast<float>(std::sin(angle)));
    }
  }
}

void Rope::turn(float* heads_of_token, std::int64_t heads, std::int64_t head_dim,
                std::size_t token) const {
  const std::size_t pairs = frequencies_.size();
  const float* cosines = cosines_.data() + token * pairs;
  const float* sines = sines_.data() + token * pairs;
  for (std::int64_t h = 0; h < heads; ++h) {
    float* head = heads_of_token + h * head_dim;
    for (std::size_t i = 0; i < pairs; ++i) {
      const float a = head[2 * i];
      const float b = head[2 * i + 1];
      head[2 * i] = a * cosines[i] - b * sines[i];
      head[2 * i + 1] = a * sines[i] + b * cosines[i];
    }
  }
}

}  // namespace kvmesh::engine
