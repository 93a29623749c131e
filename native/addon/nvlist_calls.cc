// Exports the encoding of requests and the decoding of replies.

#include "../checkpoint_request.h"
#include "../nvlist.h"
#include "calls.h"
#include "values.h"

namespace bhyve::addon {

namespace {

using Napi::CallbackInfo;
using Napi::Env;
using Napi::Value;

const char *nameOf(bhyve::nvlist::Type type) {
  using bhyve::nvlist::Type;
  switch (type) {
  case Type::Null:
    return "null";
  case Type::Bool:
    return "bool";
  case Type::Number:
    return "number";
  case Type::String:
    return "string";
  case Type::Descriptor:
    return "descriptor";
  case Type::Binary:
    return "binary";
  }
  return "null";
}

Value valueOf(const Env &env, const bhyve::nvlist::Pair &pair) {
  using bhyve::nvlist::Type;
  switch (pair.type) {
  case Type::Null:
    return env.Null();
  case Type::Bool:
    return Napi::Boolean::New(env, pair.scalar == 1);
  case Type::Number:
  case Type::Descriptor:
    return Napi::BigInt::New(env, pair.scalar);
  case Type::String:
    return Napi::String::New(env, pair.bytes);
  case Type::Binary:
    return toValue(env, pair.bytes);
  }
  return env.Null();
}

Value decodeNvlist(const CallbackInfo &info) {
  const auto bytes = bytesArgument(info, 0);
  const int descriptors = intArgument(info, 1);
  const auto pairs =
      bhyve::nvlist::decode(bytes.Data(), bytes.ByteLength(), static_cast<std::uint64_t>(descriptors));
  if (!pairs)
    return info.Env().Undefined();
  auto array = Napi::Array::New(info.Env(), pairs->size());
  for (std::uint32_t i = 0; i < pairs->size(); i++) {
    auto object = Napi::Object::New(info.Env());
    object.Set("name", (*pairs)[i].name);
    object.Set("type", nameOf((*pairs)[i].type));
    object.Set("value", valueOf(info.Env(), (*pairs)[i]));
    array.Set(i, object);
  }
  return array;
}

bhyve::Dialect dialectFrom(const Env &env, const std::string &name) {
  if (name == "struct")
    return bhyve::Dialect::Struct;
  if (name == "path")
    return bhyve::Dialect::Path;
  if (name == "descriptor")
    return bhyve::Dialect::Descriptor;
  refuse(env, "Expected a dialect: struct, path or descriptor");
}

bhyve::Operation operationFrom(const Env &env, const std::string &name) {
  if (name == "checkpoint")
    return bhyve::Operation::Checkpoint;
  if (name == "suspend")
    return bhyve::Operation::Suspend;
  if (name == "refused")
    return bhyve::Operation::Refused;
  refuse(env, "Expected an operation: checkpoint, suspend or refused");
}

Value encodeRequest(const CallbackInfo &info) {
  const auto request =
      bhyve::encodeRequest(dialectFrom(info.Env(), textArgument(info, 0)),
                           operationFrom(info.Env(), textArgument(info, 1)), textArgument(info, 2));
  if (!request)
    refuse(info.Env(), "This dialect cannot encode the request");
  return toValue(info.Env(), *request);
}

} // namespace

void addNvlistCalls(Napi::Object exports) {
  add(exports, "decodeNvlist", decodeNvlist);
  add(exports, "encodeRequest", encodeRequest);
}

} // namespace bhyve::addon
