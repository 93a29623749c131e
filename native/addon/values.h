// Converts arguments to C++ values and results to JavaScript values. Throws a TypeError for an invalid
// argument.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include <napi.h>

#include "../descriptor_table.h"
#include "../file_status.h"
#include "../memory_image.h"
#include "../process.h"
#include "../result.h"
#include "../unix_socket.h"

namespace bhyve::addon {

[[noreturn]] void refuse(const Napi::Env &env, const char *message);

int intArgument(const Napi::CallbackInfo &info, size_t index);
// An offset in a file, as an integer that a double can represent exactly.
std::int64_t offsetArgument(const Napi::CallbackInfo &info, size_t index);
// A string without NUL.
std::string textArgument(const Napi::CallbackInfo &info, size_t index);
// A file name, as a string, or as bytes if it is not valid UTF-8.
std::string nameArgument(const Napi::CallbackInfo &info, size_t index);
// A NUL in a name is left to the call: it is not part of a path component.
std::vector<std::string> namesArgument(const Napi::CallbackInfo &info, size_t index);
Napi::Uint8Array bytesArgument(const Napi::CallbackInfo &info, size_t index);

// The table of this environment.
DescriptorTable &tableOf(const Napi::Env &env);

Napi::Value toValue(const Napi::Env &env, const Failure &failure);
Napi::Value toValue(const Napi::Env &env, std::int64_t number);
Napi::Value toValue(const Napi::Env &env, double number);
Napi::Value toValue(const Napi::Env &env, const std::string &bytes);
Napi::Value toValue(const Napi::Env &env, const std::vector<std::uint8_t> &bytes);
Napi::Value toValue(const Napi::Env &env, const std::vector<int> &numbers);
Napi::Value toValue(const Napi::Env &env, const DataRange &range);
Napi::Value toValue(const Napi::Env &env, const FileStatus &status);
Napi::Value toValue(const Napi::Env &env, const Peer &peer);
Napi::Value toValue(const Napi::Env &env, const ProcessStatus &status);
// Transfers the ownership of the descriptor to the environment.
Napi::Value toValue(const Napi::Env &env, UniqueFd &descriptor);

template <typename T> Napi::Value toValue(const Napi::Env &env, Result<T> result) {
  return std::visit([&](auto &alternative) { return toValue(env, alternative); }, result);
}

} // namespace bhyve::addon
