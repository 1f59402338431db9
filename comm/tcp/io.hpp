// Sockets with deadlines: each call blocks until `until` at the latest, and sleeps while it waits.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/system/error_code.hpp>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace kvmesh::tcp {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;
using ErrorCode = boost::system::error_code;
using Socket = asio::ip::tcp::socket;
using Endpoint = asio::ip::tcp::endpoint;

/// Sends small messages without delay, and closes the connection in programs that this one starts.
void prepare(Socket& socket);

/// Runs handlers of `io` until `result` has a value or the time is over. Returns true if it has
/// one.
bool run_until(asio::io_context& io, Clock::time_point until,
               const std::optional<ErrorCode>& result);

// These return asio::error::timed_out, with the socket closed, if they are not done at `until`.
ErrorCode connect(asio::io_context& io, Socket& socket, const Endpoint& to,
                  Clock::time_point until);
ErrorCode read(asio::io_context& io, Socket& socket, asio::mutable_buffer into,
               Clock::time_point until);
ErrorCode write(asio::io_context& io, Socket& socket,
                const std::vector<asio::const_buffer>& buffers, Clock::time_point until);

/// Returns the addresses of a name, or the address that `host` spells. Returns nothing and sets
/// `error` if there is none.
std::vector<Endpoint> resolve(asio::io_context& io, const std::string& host, std::uint16_t port,
                              ErrorCode& error);

/// Returns "127.0.0.1:4000".
std::string to_string(const Endpoint& endpoint);

/// Returns the other end's address for messages: "127.0.0.1:4000", or "someone" if it has gone.
std::string other_end(const Socket& socket);

}  // namespace kvmesh::tcp
