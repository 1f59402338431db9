#include "comm/tcp/io.hpp"

#include <fcntl.h>

#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <sstream>

namespace kvmesh::tcp {
namespace {

/// Starts one operation with a handler and waits for it. A socket that is late is closed: that ends
/// its operation at once, so its buffers are the caller's again.
template <class Start>
ErrorCode finish(asio::io_context& io, Socket& socket, Clock::time_point until,
                 const Start& start) {
  std::optional<ErrorCode> result;
  start([&result](const ErrorCode& error, auto&&...) { result = error; });
  const auto give_up = [&] {
    ErrorCode ignored;
    socket.close(ignored);
    while (!result) io.run_one();
  };
  try {
    if (run_until(io, until, result)) return *result;
  } catch (...) {  // thrown by the handler of some other operation
    give_up();
    throw;
  }
  give_up();
  return asio::error::timed_out;
}

}  // namespace

void prepare(Socket& socket) {
  ErrorCode ignored;
  socket.set_option(asio::ip::tcp::no_delay(true), ignored);
  ::fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
}

bool run_until(asio::io_context& io, Clock::time_point until,
               const std::optional<ErrorCode>& result) {
  io.restart();
  while (!result && io.run_one_until(until) > 0) {
  }
  return result.has_value();
}

ErrorCode connect(asio::io_context& io, Socket& socket, const Endpoint& to,
                  Clock::time_point until) {
  const ErrorCode error = finish(
      io, socket, until, [&](auto handler) { socket.async_connect(to, std::move(handler)); });
  if (!error) prepare(socket);
  return error;
}

ErrorCode read(asio::io_context& io, Socket& socket, asio::mutable_buffer into,
               Clock::time_point until) {
  return finish(io, socket, until,
                [&](auto handler) { asio::async_read(socket, into, std::move(handler)); });
}

ErrorCode write(asio::io_context& io, Socket& socket,
                const std::vector<asio::const_buffer>& buffers, Clock::time_point until) {
  return finish(io, socket, until,
                [&](auto handler) { asio::async_write(socket, buffers, std::move(handler)); });
}

std::vector<Endpoint> resolve(asio::io_context& io, const std::string& host, std::uint16_t port,
                              ErrorCode& error) {
  const asio::ip::address spelled = asio::ip::make_address(host, error);
  if (!error) return {Endpoint(spelled, port)};
  asio::ip::tcp::resolver resolver(io);
  std::vector<Endpoint> endpoints;
  for (const auto& entry : resolver.resolve(host, std::to_string(port), error)) {
    endpoints.push_back(entry.endpoint());
  }
  return endpoints;
}

std::string to_string(const Endpoint& endpoint) {
  std::ostringstream text;
  text << endpoint;
  return text.str();
}

std::string other_end(const Socket& socket) {
  ErrorCode error;
  const Endpoint endpoint = socket.remote_endpoint(error);
  return error ? "someone" : to_string(endpoint);
}

}  // namespace kvmesh::tcp
