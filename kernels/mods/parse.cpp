// Reads the text that to_string prints, line by line, through the operators of Expr, which check
// the types.
#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <vector>

#include "core/check.hpp"
#include "kernels/mods/graph.hpp"

#include "kvmesh/mod_text.hpp"

namespace kvmesh {
namespace {

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  while (true) {
    const std::size_t begin = line.find_first_not_of(" \t\r");
    if (begin == line.npos) return words;
    line.remove_prefix(begin);
    const std::size_t end = std::min(line.find_first_of(" \t\r"), line.size());
    words.push_back(line.substr(0, end));
    line.remove_prefix(end);
  }
}

template <class Number>
std::optional<Number> number_in(std::string_view word) {
  Number number{};
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  if (error != std::errc{} || end != word.data() + word.size()) return std::nullopt;
  return number;
}

std::optional<ModOp> op_named(std::string_view word) {
  for (int op = 0; op <= static_cast<int>(ModOp::kWhere); ++op) {
    if (name(static_cast<ModOp>(op)) == word) return static_cast<ModOp>(op);
  }
  return std::nullopt;
}

std::optional<Expr> constant(std::string_view value, std::string_view type) {
  if (type == name(ModType::kBool)) {
    if (value == "true" || value == "false") return Expr(value == "true");
  } else if (type == name(ModType::kInt32)) {
    if (const auto number = number_in<std::int32_t>(value)) return Expr(*number);
  } else if (type == name(ModType::kFloat32)) {
    if (const auto number = number_in<float>(value)) return Expr(*number);
  }
  return std::nullopt;
}

Expr applied(ModOp op, const std::vector<Expr>& in) {
  switch (op) {
    case ModOp::kToFloat:
      return to_float(in[0]);
    case ModOp::kToInt:
      return to_int(in[0]);
    case ModOp::kNegate:
      return -in[0];
    case ModOp::kAbs:
      return abs(in[0]);
    case ModOp::kExp:
      return exp(in[0]);
    case ModOp::kLog:
      return log(in[0]);
    case ModOp::kSqrt:
      return sqrt(in[0]);
    case ModOp::kTanh:
      return tanh(in[0]);
    case ModOp::kNot:
      return !in[0];
    case ModOp::kAdd:
      return in[0] + in[1];
    case ModOp::kSubtract:
      return in[0] - in[1];
    case ModOp::kMultiply:
      return in[0] * in[1];
    case ModOp::kDivide:
      return in[0] / in[1];
    case ModOp::kModulo:
      return in[0] % in[1];
    case ModOp::kMin:
      return min(in[0], in[1]);
    case ModOp::kMax:
      return max(in[0], in[1]);
    case ModOp::kLess:
      return in[0] < in[1];
    case ModOp::kLessEqual:
      return in[0] <= in[1];
    case ModOp::kEqual:
      return in[0] == in[1];
    case ModOp::kNotEqual:
      return in[0] != in[1];
    case ModOp::kAnd:
      return in[0] && in[1];
    case ModOp::kOr:
      return in[0] || in[1];
    case ModOp::kWhere:
      return where(in[0], in[1], in[2]);
    default:
      throw InvalidArgument(fmt::format("{} has no operands", name(op)));
  }
}

class Parser {
 public:
  explicit Parser(std::span<const ModBuffer> buffers) : buffers_(buffers) {}

  Expr parse(std::string_view text) {
    for (std::size_t number = 1; !text.empty(); ++number) {
      const std::size_t end = std::min(text.find('\n'), text.size());
      const auto words = words_of(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
      if (words.empty()) continue;
      try {
        read_line(words);
      } catch (const InvalidArgument& error) {
        throw InvalidArgument(fmt::format("a mod's text, line {}: {}", number, error.what()));
      }
    }
    require(!values_.empty(), "a mod's text has no line");
    return values_.back();
  }

 private:
  /// %N = OP [VALUE or BUFFER] [%OPERAND ...] : TYPE
  void read_line(const std::vector<std::string_view>& words) {
    const std::size_t count = words.size();
    require(values_.size() < kMaxNodes, "more than {} operations", kMaxNodes);
    require(count >= 5 && words[1] == "=" && words[count - 2] == ":",
            "it is not of the form '%0 = q : int32'");
    require(words[0] == fmt::format("%{}", values_.size()), "it begins with {}, not with %{}",
            words[0], values_.size());
    const std::span rest(words.begin() + 3, words.end() - 2);
    const Expr value = value_of(words[2], rest, words.back());
    require(name(value.type()) == words.back(), "{} gives {}, not {}", words[2], name(value.type()),
            words.back());
    values_.push_back(value);
  }

  Expr value_of(std::string_view word, std::span<const std::string_view> rest,
                std::string_view type) const {
    const auto op = op_named(word);
    require(op.has_value(), "there is no operation {}", word);
    const bool has_payload = *op == ModOp::kConstant || *op == ModOp::kLoad;
    const auto wanted = static_cast<std::size_t>(arity(*op)) + (has_payload ? 1 : 0);
    require(rest.size() == wanted, "{} is followed by {} words, not by {}", word, rest.size(),
            wanted);
    if (*op <= ModOp::kKey) return input(*op);
    if (*op == ModOp::kConstant) {
      const auto value = constant(rest[0], type);
      require(value.has_value(), "{} is no constant of type {}", rest[0], type);
      return *value;
    }
    if (*op == ModOp::kLoad) return load(buffer(rest[0]), operand(rest[1]));
    std::vector<Expr> operands;
    for (std::string_view each : rest) operands.push_back(operand(each));
    return applied(*op, operands);
  }

  Expr input(ModOp op) const {
    switch (op) {
      case ModOp::kScore:
        return inputs_.score;
      case ModOp::kBatch:
        return inputs_.b;
      case ModOp::kHead:
        return inputs_.h;
      case ModOp::kQuery:
        return inputs_.q;
      default:
        return inputs_.kv;
    }
  }

  const Expr& operand(std::string_view word) const {
    const auto number = number_in<std::size_t>(word.substr(std::min<std::size_t>(1, word.size())));
    require(word.starts_with('%') && number && *number < values_.size(), "{} is no earlier value",
            word);
    return values_[*number];
  }

  const ModBuffer& buffer(std::string_view word) const {
    constexpr std::string_view kPrefix = "buffer";
    const bool named = word.starts_with(kPrefix);
    const auto number = number_in<std::size_t>(named ? word.substr(kPrefix.size()) : word);
    require(named && number && *number < buffers_.size(), "{} is not one of the {} buffers given",
            word, buffers_.size());
    return buffers_[*number];
  }

  std::span<const ModBuffer> buffers_;
  ModInputs inputs_ = symbolic_inputs();
  std::vector<Expr> values_;
};

}  // namespace

MaskMod parse_mask_mod(std::string_view text, std::span<const ModBuffer> buffers) {
  const Expr result = Parser(buffers).parse(text);
  const MaskMod mask([&](auto, auto, auto, auto) { return result; });
  require(!mask.graph().depends_on(kDependsScore), "a mask mod's text uses the score");
  return mask;
}

ScoreMod parse_score_mod(std::string_view text, std::span<const ModBuffer> buffers) {
  const Expr result = Parser(buffers).parse(text);
  return ScoreMod([&](auto, auto, auto, auto, auto) { return result; });
}

}  // namespace kvmesh
