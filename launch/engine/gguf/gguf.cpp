// Layout (little-endian): "GGUF" | version u32 | tensors u64 | keys u64
//   | keys    x { name | type u32 | value }             name, text = length u64 | bytes
//   | tensors x { name | dims u32 | dims x extent u64 | type u32 | offset u64 }
//   | padding to `general.alignment` | tensor data, offsets counted from here
// Source: the GGUF specification in the ggml repository (docs/gguf.md).
#include "launch/engine/gguf/gguf.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace kvmesh::engine {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

enum class ValueType : std::uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

constexpr std::uint64_t kDefaultAlignment = 32;

}  // namespace

/// Reads the file front to back; every read is checked against the bytes that are left.
class GgufFile::Parser {
 public:
  explicit Parser(GgufFile& file) : out_(file), bytes_(file.file_.bytes()) {}

  void parse() {
    const auto counts = parse_header();
    for (std::uint64_t i = 0; i < counts.second; ++i) parse_key();
    check_whole();
    for (std::uint64_t i = 0; i < counts.first; ++i) parse_tensor();
    place_tensors();
  }

 private:
  [[noreturn]] void damaged(std::string_view what) const {
    throw ModelError(fmt::format("{}: damaged: {}; download it again", out_.path_, what));
  }

  std::uint64_t left() const { return bytes_.size() - at_; }

  void need(std::uint64_t size, std::string_view what) const {
    if (size <= left()) return;
    throw ModelError(
        fmt::format("{}: truncated: {} needs {} bytes from {}, the file has {}; "
                    "download it again",
                    out_.path_, what, size, at_, bytes_.size()));
  }

  template <class Number>
  Number read(std::string_view what) {
    need(sizeof(Number), what);
    Number value;
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

  std::string_view read_text(std::string_view what) {
    const auto size = read<std::uint64_t>(what);
    need(size, what);
    const auto* text = reinterpret_cast<const char*>(bytes_.data() + at_);
    at_ += size;
    return {text, static_cast<std::size_t>(size)};
  }

  /// (tensors, keys).
  std::pair<std::uint64_t, std::uint64_t> parse_header() {
    constexpr std::uint32_t kMagic = 0x4655'4747;  // "GGUF"
    if (bytes_.size() < 4 || read<std::uint32_t>("the magic number") != kMagic) {
      throw ModelError(fmt::format("{}: not a GGUF file; give the path of one", out_.path_));
    }
    out_.version_ = read<std::uint32_t>("the version");
    if (out_.version_ != 0 && (out_.version_ & 0xFFFF) == 0) {  // 2 or 3 with its bytes reversed
      throw ModelError(fmt::format(
          "{}: a big-endian GGUF file is not supported; convert the model for little-endian "
          "machines",
          out_.path_));
    }
    if (out_.version_ != 2 && out_.version_ != 3) {
      throw ModelError(
          fmt::format("{}: GGUF version {} is not supported: this program reads 2 and "
                      "3, little-endian; convert the model again",
                      out_.path_, out_.version_));
    }
    const auto tensors = read<std::uint64_t>("the number of tensors");
    return {tensors, read<std::uint64_t>("the number of keys")};
  }

  void check_whole() const {
    const auto* parts = out_.find<std::int64_t>("split.count");
    if (parts == nullptr || *parts <= 1) return;
    const auto* part = out_.find<std::int64_t>("split.no");
    throw ModelError(
        fmt::format("{}: part {} of a model that is split into {} files is not supported; merge "
                    "them into one file first",
                    out_.path_, part == nullptr ? 1 : *part + 1, *parts));
  }

  void parse_key() {
    const std::string_view key = read_text("a key");
    const auto type = static_cast<ValueType>(read<std::uint32_t>(printable(key)));
    GgufValue value = type == ValueType::kArray ? parse_array(key) : parse_scalar(type, key);
    if (!out_.metadata_.emplace(key, std::move(value)).second) {
      damaged(fmt::format("key {} appears twice", printable(key)));
    }
  }

  GgufValue parse_scalar(ValueType type, std::string_view key) {
    switch (type) {
      case ValueType::kString:
        return read_text(printable(key));
      case ValueType::kBool:
        return read<std::uint8_t>(printable(key)) != 0;
      case ValueType::kFloat32:
      case ValueType::kFloat64:
        return read_real(type);
      default:
        return read_integer(type, key);
    }
  }

  double read_real(ValueType type) {
    if (type == ValueType::kFloat64) return read<double>("a number");
    return static_cast<double>(read<float>("a number"));
  }

  std::int64_t read_integer(ValueType type, std::string_view key) {
    switch (type) {
      case ValueType::kUint8:
      case ValueType::kBool:
        return read<std::uint8_t>("an integer");
      case ValueType::kInt8:
        return read<std::int8_t>("an integer");
      case ValueType::kUint16:
        return read<std::uint16_t>("an integer");
      case ValueType::kInt16:
        return read<std::int16_t>("an integer");
      case ValueType::kUint32:
        return read<std::uint32_t>("an integer");
      case ValueType::kInt32:
        return read<std::int32_t>("an integer");
      case ValueType::kInt64:
        return read<std::int64_t>("an integer");
      case ValueType::kUint64: {
        const auto value = read<std::uint64_t>("an integer");
        if (value <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}) {
          return static_cast<std::int64_t>(value);
        }
        damaged(fmt::format("key {} has the impossible value {}", printable(key), value));
      }
      default:
        damaged(fmt::format("key {} has the unknown type {}", printable(key),
                            static_cast<std::uint32_t>(type)));
    }
  }

  GgufValue parse_array(std::string_view key) {
    const auto type = static_cast<ValueType>(read<std::uint32_t>(printable(key)));
    const auto count = read<std::uint64_t>(printable(key));
    // The least bytes of the elements, so that a damaged count cannot request more memory than a
    // small multiple of the file.
    const std::uint64_t least = type == ValueType::kString ? sizeof(std::uint64_t) : 1;
    need(count > left() / least ? std::numeric_limits<std::uint64_t>::max() : count * least,
         printable(key));
    switch (type) {
      case ValueType::kString:
        return read_many<std::string_view>(count, [&] { return read_text("a text in an array"); });
      case ValueType::kFloat32:
      case ValueType::kFloat64:
        return read_many<double>(count, [&] { return read_real(type); });
      case ValueType::kArray:
        damaged(fmt::format("key {} is an array of arrays", printable(key)));
      default:
        return read_many<std::int64_t>(count, [&] { return read_integer(type, key); });
    }
  }

  template <class Value, class Read>
  std::vector<Value> read_many(std::uint64_t count, const Read& read_one) {
    std::vector<Value> values;
    values.reserve(static_cast<std::size_t>(count));
    for (std::uint64_t i = 0; i < count; ++i) values.push_back(read_one());
    return values;
  }

  void parse_tensor() {
    GgufTensor tensor;
    tensor.name = read_text("a tensor's name");
    const std::string name = printable(tensor.name);
    const auto dims = read<std::uint32_t>(name);
    if (dims < 1 || dims > tensor.shape.size()) {
      damaged(fmt::format("tensor {} has {} dimensions", name, dims));
    }
    tensor.dims = static_cast<int>(dims);
    for (std::uint32_t i = 0; i < dims; ++i) {
      tensor.shape[i] = read_integer(ValueType::kUint64, tensor.name);
    }
    tensor.type = static_cast<WeightType>(read<std::uint32_t>(name));
    tensor.offset_bytes = read<std::uint64_t>(name);
    tensor.size_bytes = size_bytes(tensor);
    if (!out_.tensors_.emplace(tensor.name, tensor).second) {
      damaged(fmt::format("tensor {} appears twice", name));
    }
  }

  /// Returns 0 for an unknown type: only using such a tensor is an error.
  std::uint64_t size_bytes(const GgufTensor& tensor) const {
    // Below 2^48 elements nothing here can overflow, and no file holds more.
    constexpr std::int64_t kMaxElements = std::int64_t{1} << 48;
    std::int64_t elements = 1;
    for (std::int64_t extent : tensor.shape) {
      if (extent < 1 || extent > kMaxElements / elements) {
        damaged(fmt::format("tensor {} has an impossible shape", printable(tensor.name)));
      }
      elements *= extent;
    }
    const auto layout = block_layout(tensor.type);
    if (!layout) return 0;
    if (tensor.shape[0] % layout->elements != 0) {
      damaged(fmt::format("tensor {} has rows of {} elements, {} packs {} in a block",
                          printable(tensor.name), tensor.shape[0], layout->name, layout->elements));
    }
    return static_cast<std::uint64_t>(elements / layout->elements * layout->bytes);
  }

  void place_tensors() {
    const auto* given = out_.find<std::int64_t>("general.alignment");
    const std::uint64_t alignment =
        given == nullptr ? kDefaultAlignment : static_cast<std::uint64_t>(*given);
    // The specification demands a multiple of 8; the loads of scales and floats rely on it.
    if (alignment < 8 || !std::has_single_bit(alignment) || alignment > (1u << 20)) {
      damaged(fmt::format("general.alignment is {}", alignment));
    }
    const std::uint64_t start = (at_ + alignment - 1) / alignment * alignment;
    for (auto& [name, tensor] : out_.tensors_) place(tensor, start, alignment);
  }

  void place(GgufTensor& tensor, std::uint64_t start, std::uint64_t alignment) const {
    if (tensor.offset_bytes % alignment != 0) {
      damaged(
          fmt::format("tensor {} is not aligned to {} bytes", printable(tensor.name), alignment));
    }
    const std::uint64_t size = bytes_.size();
    const bool begins = start <= size && tensor.offset_bytes <= size - start;
    if (!begins || tensor.size_bytes > size - start - tensor.offset_bytes) {
      const std::uint64_t begin =
          start + std::min(tensor.offset_bytes, std::numeric_limits<std::uint64_t>::max() / 2);
      throw ModelError(fmt::format(
          "{}: truncated: tensor {} needs bytes {}..{}, the file has {}; download it again",
          out_.path_, printable(tensor.name), begin, begin + tensor.size_bytes, size));
    }
    tensor.offset_bytes += start;
  }

  GgufFile& out_;
  std::span<const std::byte> bytes_;
  std::uint64_t at_ = 0;
};

GgufFile::GgufFile(const std::string& path) : path_(path), file_(path) { Parser(*this).parse(); }

const GgufTensor& GgufFile::tensor(std::string_view name) const {
  const auto entry = tensors_.find(name);
  if (entry == tensors_.end()) missing("tensor", name);
  return entry->second;
}

std::span<const std::byte> GgufFile::data(const GgufTensor& tensor) const {
  return file_.bytes().subspan(static_cast<std::size_t>(tensor.offset_bytes),
                               static_cast<std::size_t>(tensor.size_bytes));
}

void GgufFile::missing(std::string_view what, std::string_view name) const {
  throw ModelError(fmt::format("{}: the {} {} is missing; use a complete GGUF of a llama model",
                               path_, what, name));
}

void GgufFile::wrong_type(std::string_view key) const {
  throw ModelError(
      fmt::format("{}: damaged: key {} has an unexpected type; download it again", path_, key));
}

std::string printable(std::string_view name) {
  constexpr std::size_t kMaxChars = 64;
  std::string text(name.substr(0, kMaxChars));
  std::ranges::replace_if(
      text, [](char c) { return c < ' ' || c > '~'; }, '?');
  if (name.size() > kMaxChars) text += "...";
  return text;
}

}  // namespace kvmesh::engine
