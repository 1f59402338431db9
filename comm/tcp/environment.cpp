// What a launcher other than mpirun says of a process, in its environment.
#include <charconv>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "core/check.hpp"
#include "kvmesh/tcp.hpp"

namespace kvmesh {
namespace {

constexpr const char* kRank = "KVMESH_RANK";
constexpr const char* kSize = "KVMESH_SIZE";
constexpr const char* kRendezvous = "KVMESH_RENDEZVOUS";
constexpr const char* kAddress = "KVMESH_ADDRESS";

// Empty if it is not set.
std::string_view variable(const char* name) {
  const char* text = std::getenv(name);
  return text ? text : "";
}

template <class Number>
Number number(std::string_view what, std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc{} && end == text.data() + text.size(), "{} is '{}', not a number",
          what, text);
  return value;
}

// "host:port", "[::1]:port".
void read_rendezvous(std::string_view text, TcpOptions& options) {
  const std::size_t colon = text.rfind(':');
  require(colon != std::string_view::npos && colon > 0 && colon + 1 < text.size(),
          "{} is '{}', not host:port", kRendezvous, text);
  std::string_view host = text.substr(0, colon);
  const bool in_brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (in_brackets) host = host.substr(1, host.size() - 2);
  require(in_brackets || host.find(':') == std::string_view::npos,
          "{} is '{}': an IPv6 address stands in brackets, [::1]:port", kRendezvous, text);
  options.host = host;
  options.port = number<std::uint16_t>("the port in KVMESH_RENDEZVOUS", text.substr(colon + 1));
}

}  // namespace

std::optional<TcpOptions> tcp_options_from_environment() {
  std::string missing;
  int given = 0;
  for (const char* name : {kRank, kSize, kRendezvous}) {
    if (!variable(name).empty()) {
      ++given;
    } else {
      missing += fmt::format(" {}", name);
    }
  }
  if (given == 0) return std::nullopt;
  require(missing.empty(), "{}, {} and {} go together, but there is no{}", kRank, kSize,
          kRendezvous, missing);
  TcpOptions options;
  options.rank = number<int>(kRank, variable(kRank));
  options.size = number<int>(kSize, variable(kSize));
  require(options.rank >= 0 && options.rank < options.size, "{} is {}, {} {}: ranks are 0 to {}",
          kRank, options.rank, kSize, options.size, options.size - 1);
  read_rendezvous(variable(kRendezvous), options);
  options.address = variable(kAddress);
  return options;
}

}  // namespace kvmesh
