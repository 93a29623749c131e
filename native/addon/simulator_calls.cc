// Exports the calls that only the simulator uses: the server side of bhyve's socket, the encoding of any
// nvlist, and the end of the process by a signal.

#include "../nvlist.h"
#include "../simulator/fatal_signal.h"
#include "../simulator/server_socket.h"
#include "calls.h"
#include "values.h"

namespace bhyve::addon {

namespace {

using Napi::CallbackInfo;
using Napi::Env;
using Napi::Value;

Value listenStream(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::listenStream(textArgument(info, 0), intArgument(info, 1)));
}
Value bindDatagram(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::bindDatagram(textArgument(info, 0)));
}
Value acceptConnection(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::acceptConnection(intArgument(info, 0)));
}

Value receiveBytes(const CallbackInfo &info) {
  const int length = intArgument(info, 1);
  if (length < 1)
    refuse(info.Env(), "Expected a positive length");
  return toValue(info.Env(), bhyve::receiveBytes(intArgument(info, 0), static_cast<size_t>(length)));
}

// Transfers the ownership of the descriptors to the environment.
Value valueOf(const Env &env, bhyve::ReceivedDescriptors &received) {
  auto descriptors = Napi::Array::New(env, received.descriptors.size());
  for (std::uint32_t i = 0; i < received.descriptors.size(); i++)
    descriptors.Set(i, toValue(env, received.descriptors[i]));
  auto object = Napi::Object::New(env);
  object.Set("bytes", static_cast<double>(received.bytes));
  object.Set("descriptors", descriptors);
  object.Set("truncated", received.truncated);
  return object;
}

Value receiveDescriptors(const CallbackInfo &info) {
  const int expected = intArgument(info, 1);
  if (expected < 1)
    refuse(info.Env(), "Expected a positive number of descriptors");
  auto result = bhyve::receiveDescriptors(intArgument(info, 0), static_cast<size_t>(expected));
  if (const auto *failure = std::get_if<Failure>(&result))
    return toValue(info.Env(), *failure);
  return valueOf(info.Env(), std::get<bhyve::ReceivedDescriptors>(result));
}

Value pollReadable(const CallbackInfo &info) {
  if (!info[0].IsArray())
    refuse(info.Env(), "Expected an array of descriptors");
  const auto array = info[0].As<Napi::Array>();
  std::vector<int> descriptors;
  for (std::uint32_t i = 0; i < array.Length(); i++) {
    const Value descriptor = array[i];
    if (!descriptor.IsNumber())
      refuse(info.Env(), "Expected an array of descriptors");
    descriptors.push_back(descriptor.As<Napi::Number>().Int32Value());
  }
  return toValue(info.Env(), bhyve::pollReadable(descriptors, intArgument(info, 1)));
}

std::uint64_t scalarFrom(const Env &env, const Value &value) {
  bool lossless = false;
  if (!value.IsBigInt())
    refuse(env, "Expected a bigint");
  const std::uint64_t scalar = value.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless)
    refuse(env, "Expected an unsigned 64-bit bigint");
  return scalar;
}

std::string stringFrom(const Env &env, const Value &value, bool nulAllowed) {
  if (!value.IsString())
    refuse(env, "Expected a string");
  std::string text = value.As<Napi::String>().Utf8Value();
  if (!nulAllowed && text.find('\0') != std::string::npos)
    refuse(env, "Expected a string without NUL");
  return text;
}

bhyve::nvlist::Pair pairFrom(const Env &env, const Napi::Object &object) {
  using bhyve::nvlist::Pair;
  const std::string name = stringFrom(env, object.Get("name"), false);
  const std::string type = stringFrom(env, object.Get("type"), false);
  const Value value = object.Get("value");
  if (name.size() >= 2048)
    refuse(env, "Expected a name of at most 2047 bytes");
  if (type == "null")
    return Pair::null(name);
  if (type == "bool" && value.IsBoolean())
    return Pair::boolean(name, value.As<Napi::Boolean>());
  if (type == "number")
    return Pair::number(name, scalarFrom(env, value));
  if (type == "descriptor")
    return Pair::descriptor(name, scalarFrom(env, value));
  if (type == "string")
    return Pair::string(name, stringFrom(env, value, false));
  if (type == "binary" && value.IsBuffer() && value.As<Napi::Buffer<char>>().Length() > 0) {
    const auto buffer = value.As<Napi::Buffer<char>>();
    return Pair::binary(name, std::string(buffer.Data(), buffer.Length()));
  }
  refuse(env, "The type and the value of the pair do not match");
}

Value encodeNvlist(const CallbackInfo &info) {
  if (!info[0].IsArray())
    refuse(info.Env(), "Expected an array of pairs");
  const auto array = info[0].As<Napi::Array>();
  bhyve::nvlist::List pairs;
  for (std::uint32_t i = 0; i < array.Length(); i++) {
    const Value pair = array[i];
    if (!pair.IsObject())
      refuse(info.Env(), "Expected a pair");
    pairs.push_back(pairFrom(info.Env(), pair.As<Napi::Object>()));
  }
  return toValue(info.Env(), bhyve::nvlist::encode(pairs));
}

Value dieBy(const CallbackInfo &info) {
  bhyve::dieBy(intArgument(info, 0));
}

} // namespace

void addSimulatorCalls(Napi::Object exports) {
  auto group = Napi::Object::New(exports.Env());
  add(group, "listenStream", listenStream);
  add(group, "bindDatagram", bindDatagram);
  add(group, "accept", acceptConnection);
  add(group, "receive", receiveBytes);
  add(group, "receiveDescriptors", receiveDescriptors);
  add(group, "poll", pollReadable);
  add(group, "encodeNvlist", encodeNvlist);
  add(group, "dieBy", dieBy);
  exports.Set("simulator", group);
}

} // namespace bhyve::addon
