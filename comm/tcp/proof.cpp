#include "comm/tcp/proof.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include "kvmesh/error.hpp"

namespace kvmesh::tcp {

Nonce make_nonce() {
  Nonce nonce{};
  if (RAND_bytes(nonce.data(), static_cast<int>(nonce.size())) != 1) {
    throw Error("OpenSSL has no random numbers");
  }
  return nonce;
}

// Only the job's id has no fixed length. It comes last, so no two texts are joined to the same one.
Proof prove(const Credentials& credentials, Role role, const Nonce& caller, const Nonce& listener,
            std::span<const std::byte> words) {
  std::string text = role == Role::kCaller ? "kvmesh 2 calls  " : "kvmesh 2 listens";
  const auto add = [&](const void* bytes, std::size_t count) {
    text.append(static_cast<const char*>(bytes), count);
  };
  add(caller.data(), caller.size());
  add(listener.data(), listener.size());
  add(words.data(), words.size());
  text += credentials.job;
  Proof proof{};
  const std::string& key = credentials.secret;
  if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
           reinterpret_cast<const unsigned char*>(text.data()), text.size(), proof.data(),
           nullptr) == nullptr) {
    throw Error("OpenSSL has no HMAC-SHA256");
  }
  return proof;
}

bool is_equal(const Proof& one, const Proof& other) {
  return CRYPTO_memcmp(one.data(), other.data(), one.size()) == 0;
}

}  // namespace kvmesh::tcp
