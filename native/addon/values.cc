#include "values.h"

namespace bhyve::addon {

using Napi::CallbackInfo;
using Napi::Env;
using Napi::Value;

[[noreturn]] void refuse(const Env &env, const char *message) {
  throw Napi::TypeError::New(env, message);
}

int intArgument(const CallbackInfo &info, size_t index) {
  if (!info[index].IsNumber())
    refuse(info.Env(), "Expected an integer");
  return info[index].As<Napi::Number>().Int32Value();
}

std::int64_t offsetArgument(const CallbackInfo &info, size_t index) {
  constexpr double kMax = 9007199254740991;
  const double number = info[index].IsNumber() ? info[index].As<Napi::Number>().DoubleValue() : -1;
  const bool isOffset = number >= 0 && number <= kMax; // false for NaN
  if (!isOffset)
    refuse(info.Env(), "Expected an offset");
  return static_cast<std::int64_t>(number);
}

std::string textArgument(const CallbackInfo &info, size_t index) {
  if (!info[index].IsString())
    refuse(info.Env(), "Expected a string");
  std::string text = info[index].As<Napi::String>().Utf8Value();
  // A system call would use only the part before the NUL.
  if (text.find('\0') != std::string::npos)
    refuse(info.Env(), "Expected a string without NUL");
  return text;
}

std::string nameArgument(const CallbackInfo &info, size_t index) {
  if (!info[index].IsTypedArray())
    return textArgument(info, index);
  const auto bytes = info[index].As<Napi::TypedArray>();
  if (bytes.TypedArrayType() != napi_uint8_array)
    refuse(info.Env(), "Expected a name as a string or a Uint8Array");
  const auto octets = bytes.As<Napi::Uint8Array>();
  return {reinterpret_cast<const char *>(octets.Data()), octets.ByteLength()};
}

std::vector<std::string> namesArgument(const CallbackInfo &info, size_t index) {
  if (!info[index].IsArray())
    refuse(info.Env(), "Expected an array of strings");
  const auto array = info[index].As<Napi::Array>();
  std::vector<std::string> names;
  names.reserve(array.Length());
  for (std::uint32_t i = 0; i < array.Length(); i++)
    names.push_back(array.Get(i).ToString().Utf8Value());
  return names;
}

Napi::Uint8Array bytesArgument(const CallbackInfo &info, size_t index) {
  if (!info[index].IsTypedArray() || info[index].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    refuse(info.Env(), "Expected a Uint8Array");
  return info[index].As<Napi::Uint8Array>();
}

Value toValue(const Env &env, const Failure &failure) {
  auto object = Napi::Object::New(env);
  object.Set("errno", failure.error);
  object.Set("syscall", failure.syscall);
  return object;
}

Value toValue(const Env &env, std::int64_t number) {
  return Napi::Number::New(env, static_cast<double>(number));
}
Value toValue(const Env &env, double number) {
  return Napi::Number::New(env, number);
}
Value toValue(const Env &env, const std::string &bytes) {
  return {env, Napi::Buffer<char>::Copy(env, bytes.data(), bytes.size())};
}
Value toValue(const Env &env, const std::vector<std::uint8_t> &bytes) {
  return {env, Napi::Buffer<std::uint8_t>::Copy(env, bytes.data(), bytes.size())};
}

Value toValue(const Env &env, const DataRange &range) {
  auto object = Napi::Object::New(env);
  object.Set("start", range.start);
  object.Set("end", range.end);
  return object;
}

DescriptorTable &tableOf(const Env &env) {
  return *env.GetInstanceData<DescriptorTable>();
}

Value toValue(const Env &env, UniqueFd &descriptor) {
  return Napi::Number::New(env, tableOf(env).own(std::move(descriptor)));
}

namespace {

const char *nameOf(FileKind kind) {
  switch (kind) {
  case FileKind::File:
    return "file";
  case FileKind::Directory:
    return "directory";
  case FileKind::Symlink:
    return "symlink";
  case FileKind::Socket:
    return "socket";
  case FileKind::Fifo:
    return "fifo";
  case FileKind::Other:
    return "other";
  }
  return "other";
}

} // namespace

// An array, in the order of FileStatusValues in lib/base/native.ts.
Value toValue(const Env &env, const FileStatus &status) {
  constexpr size_t kCount = 8;
  std::uint32_t index = 0;
  auto values = Napi::Array::New(env, kCount);
  values.Set(index++, nameOf(status.kind));
  values.Set(index++, status.size);
  values.Set(index++, status.allocatedBytes);
  values.Set(index++, status.mtimeMs);
  values.Set(index++, identityOf(status));
  values.Set(index++, status.links);
  values.Set(index++, status.uid);
  values.Set(index++, status.mode);
  return values;
}

Value toValue(const Env &env, const Peer &peer) {
  auto object = Napi::Object::New(env);
  object.Set("uid", static_cast<double>(peer.uid));
  object.Set("pid", static_cast<double>(peer.pid));
  return object;
}

namespace {

const char *nameOf(ProcessState state) {
  switch (state) {
  case ProcessState::Running:
    return "running";
  case ProcessState::Stopped:
    return "stopped";
  case ProcessState::Zombie:
    return "zombie";
  }
  return "running";
}

} // namespace

Value toValue(const Env &env, const ProcessStatus &status) {
  auto object = Napi::Object::New(env);
  object.Set("state", nameOf(status.state));
  object.Set("startedAt", status.startedAt);
  object.Set("parent", static_cast<double>(status.parent));
  return object;
}

Value toValue(const Env &env, const std::vector<int> &numbers) {
  auto array = Napi::Array::New(env, numbers.size());
  for (std::uint32_t i = 0; i < numbers.size(); i++)
    array.Set(i, numbers[i]);
  return array;
}

} // namespace bhyve::addon
