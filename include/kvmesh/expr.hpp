// The symbolic values that mods are traced with, and the functions on them.
//
// Every function here has a plain twin: a generic lambda that can be traced with `Expr` can also be
// called with float and int32 values, and then computes its result at once. Tests of mods use this.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvmesh/api.h"

namespace KVMESH_API kvmesh {

/// The type of a value inside a mod. Mixed operands promote in this order, as in C++.
enum class ModType : std::uint8_t { kBool, kInt32, kFloat32 };

std::string_view name(ModType type);

struct ExprNode;  // internal

/// A value that is not known yet: a node of the expression that a mod's lambda builds. Immutable
/// and cheap to copy. Numbers convert to Expr, so `score * 2.0f` and `kv < 128` work as written.
///
/// - Integers are int32 and wrap. `/` and `%` truncate towards zero; a zero divisor gives 0.
/// - `&&`, `||`, `!` (and `&`, `|`) take bools and evaluate both sides: there is no short-circuit.
///   An `Expr` is not a C++ bool, so `if` and `?:` do not compile: use `where`.
/// - A wrong type throws InvalidArgument where the operation stands.
class Expr {
 public:
  Expr(bool value);
  Expr(std::int32_t value);
  Expr(float value);
  Expr(double value) : Expr(static_cast<float>(value)) {}
  /// Converts any other integer. @throws InvalidArgument if the value does not fit in int32.
  template <std::integral T>
  requires(!std::same_as<T, bool> && !std::same_as<T, std::int32_t>) Expr(T value)
      : Expr(fits_int32(std::in_range<std::int32_t>(value), value)) {}

  ModType type() const;

  friend Expr operator+(const Expr& a, const Expr& b);
  friend Expr operator-(const Expr& a, const Expr& b);
  friend Expr operator*(const Expr& a, const Expr& b);
  friend Expr operator/(const Expr& a, const Expr& b);
  friend Expr operator%(const Expr& a, const Expr& b);
  friend Expr operator-(const Expr& a);
  friend Expr operator<(const Expr& a, const Expr& b);
  friend Expr operator<=(const Expr& a, const Expr& b);
  friend Expr operator>(const Expr& a, const Expr& b);
  friend Expr operator>=(const Expr& a, const Expr& b);
  friend Expr operator==(const Expr& a, const Expr& b);
  friend Expr operator!=(const Expr& a, const Expr& b);
  friend Expr operator&&(const Expr& a, const Expr& b);
  friend Expr operator||(const Expr& a, const Expr& b);
  friend Expr operator&(const Expr& a, const Expr& b);
  friend Expr operator|(const Expr& a, const Expr& b);
  friend Expr operator!(const Expr& a);
  Expr& operator+=(const Expr& other) { return *this = *this + other; }
  Expr& operator-=(const Expr& other) { return *this = *this - other; }
  Expr& operator*=(const Expr& other) { return *this = *this * other; }
  Expr& operator/=(const Expr& other) { return *this = *this / other; }

  /// Internal: wraps a node, and returns it.
  explicit Expr(std::shared_ptr<const ExprNode> node) : node_(std::move(node)) {}
  const std::shared_ptr<const ExprNode>& node() const { return node_; }

 private:
  static std::int32_t fits_int32(bool fits, std::int64_t value);

  std::shared_ptr<const ExprNode> node_;
};

/// `condition ? a : b`. Both sides are computed; the side that is not chosen has no effect.
Expr where(const Expr& condition, const Expr& a, const Expr& b);
Expr min(const Expr& a, const Expr& b);  ///< b < a ? b : a
Expr max(const Expr& a, const Expr& b);  ///< a < b ? b : a
Expr abs(const Expr& a);
Expr exp(const Expr& a);
Expr log(const Expr& a);
Expr sqrt(const Expr& a);
Expr tanh(const Expr& a);
Expr to_float(const Expr& a);
/// Rounds towards zero; out of range returns the nearest int32, NaN returns 0. A bool becomes 0 or
/// 1.
Expr to_int(const Expr& a);

// ---- The plain twins -----------------------------------------------------------------------

template <class T>
concept PlainNumber = std::is_arithmetic_v<T>;

/// Converts integers and bools to float; a floating-point number keeps its type.
template <PlainNumber T>
constexpr auto to_float(T value) {
  if constexpr (std::floating_point<T>) {
    return value;
  } else {
    return static_cast<float>(value);
  }
}

template <PlainNumber T>
constexpr std::int32_t to_int(T value) {
  if constexpr (std::floating_point<T>) {
    using Limits = std::numeric_limits<std::int32_t>;
    if (value != value) return 0;
    if (value >= T{2147483648.0}) return Limits::max();
    if (value <= T{-2147483648.0}) return Limits::min();
  }
  return static_cast<std::int32_t>(value);
}

template <PlainNumber A, PlainNumber B>
constexpr auto where(bool condition, A a, B b) {
  using Common = std::common_type_t<A, B>;
  return condition ? static_cast<Common>(a) : static_cast<Common>(b);
}
template <PlainNumber A, PlainNumber B>
constexpr auto min(A a, B b) {
  using Common = std::common_type_t<A, B>;
  return std::min<Common>(static_cast<Common>(a), static_cast<Common>(b));
}
template <PlainNumber A, PlainNumber B>
constexpr auto max(A a, B b) {
  using Common = std::common_type_t<A, B>;
  return std::max<Common>(static_cast<Common>(a), static_cast<Common>(b));
}
template <PlainNumber T>
auto abs(T value) {
  return std::abs(value);
}
template <PlainNumber T>
auto exp(T value) {
  return std::exp(to_float(value));
}
template <PlainNumber T>
auto log(T value) {
  return std::log(to_float(value));
}
template <PlainNumber T>
auto sqrt(T value) {
  return std::sqrt(to_float(value));
}
template <PlainNumber T>
auto tanh(T value) {
  return std::tanh(to_float(value));
}

// ---- Captured buffers ----------------------------------------------------------------------

/// Memory that a mod reads; `owner` keeps it alive.
struct ModBuffer {
  std::shared_ptr<const void> owner;
  const void* data = nullptr;  ///< [size] float, int32 or (bool) uint8
  std::int64_t size = 0;
  ModType type = ModType::kFloat32;
  const std::uint64_t* version = nullptr;  ///< changes with the numbers; null: they are constant
};

/// Returns the element `index` (clamped to the buffer) as a symbolic value.
Expr load(const ModBuffer& buffer, const Expr& index);

/// Internal: this thread traces a mod while the object lives.
class Tracing {
 public:
  Tracing();
  ~Tracing();
  Tracing(const Tracing&) = delete;
  Tracing& operator=(const Tracing&) = delete;
};

/// Internal, for Buffer. @throws InvalidArgument unless 0 < size < 2^31 and rows divide it.
void check_buffer(std::int64_t size, std::int64_t row_length);
void check_buffer_index(std::int64_t index, std::int64_t size);
void check_buffer_refill(std::int64_t given, std::int64_t size);
/// @throws InvalidArgument while this thread traces a mod.
void check_buffer_read(std::int64_t index);

template <class T>
concept BufferElement =
    std::same_as<T, float> || std::same_as<T, std::int32_t> || std::same_as<T, bool>;

/// Numbers that a mod captures: slopes, document ids, bias tables. Copies share the same memory, so
/// the copy that a lambda captured sees every later `set`. Call `set` only between steps, while
/// nothing runs.
///
/// An index out of range is clamped to the first or last element, so `where(kv < n, buffer[kv], 0)`
/// is safe although both sides are computed. Rows (`at`) are consecutive: the clamped index is i *
/// row_length + j.
///
/// A C++ integer as the index reads the number itself. While a mod is traced, that number would be
/// fixed in the mod, whatever is set later, so it throws InvalidArgument: write buffer[Expr(0)].
template <BufferElement T>
class Buffer {
  using Stored = std::conditional_t<std::same_as<T, bool>, std::uint8_t, T>;

 public:
  /// @throws InvalidArgument if `values` is empty or is not a whole number of rows.
  explicit Buffer(const std::vector<T>& values, std::int32_t row_length = 1)
      : content_(std::make_shared<Content>(std::vector<Stored>(values.begin(), values.end()))),
        row_length_(row_length) {
    check_buffer(size(), row_length);
  }

  std::int64_t size() const { return static_cast<std::int64_t>(content_->values.size()); }
  std::int32_t row_length() const { return row_length_; }

  Expr operator[](const Expr& index) const { return load(symbolic(), index); }
  T operator[](std::integral auto index) const {
    check_buffer_read(static_cast<std::int64_t>(index));
    const auto last = size() - 1;
    const auto clamped = std::clamp<std::int64_t>(static_cast<std::int64_t>(index), 0, last);
    return static_cast<T>(content_->values[static_cast<std::size_t>(clamped)]);
  }

  /// Row i, column j: [i * row_length + j].
  template <class I, class J>
  auto at(const I& i, const J& j) const {
    return (*this)[i * row_length_ + j];
  }

  /// Sets one element. @throws InvalidArgument if the index is out of range.
  void set(std::int64_t index, T value) {
    check_buffer_index(index, size());
    content_->values[static_cast<std::size_t>(index)] = value;
    ++content_->version;
  }
  /// Sets all elements. @throws InvalidArgument if the number of elements differs.
  void set(const std::vector<T>& values) {
    check_buffer_refill(static_cast<std::int64_t>(values.size()), size());
    std::copy(values.begin(), values.end(), content_->values.begin());
    ++content_->version;
  }

 private:
  ModBuffer symbolic() const {
    constexpr ModType kType = std::same_as<T, float>  ? ModType::kFloat32
                              : std::same_as<T, bool> ? ModType::kBool
                                                      : ModType::kInt32;
    return {content_, content_->values.data(), size(), kType, &content_->version};
  }

  struct Content {
    explicit Content(std::vector<Stored> numbers) : values(std::move(numbers)) {}
    std::vector<Stored> values;
    std::uint64_t version = 0;  // counts the changes, so that a backend can detect an old copy
  };
  std::shared_ptr<Content> content_;  // shared by the copies, and by graphs that read it
  std::int32_t row_length_;
};

}  // namespace kvmesh
