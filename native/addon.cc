// The one file that knows Node-API: it turns arguments into C++ values and results into JavaScript ones.
// Nothing here decides anything.

#include <algorithm>
#include <limits>
#include <memory>

#include <napi.h>

#include "checkpoint_request.h"
#include "descriptor_table.h"
#include "directory.h"
#include "file_status.h"
#include "memory_image.h"
#include "nvlist.h"
#include "process.h"
#include "process_exit.h"
#include "server_socket.h"
#include "unix_socket.h"

namespace {

using bhyve::Failure;
using bhyve::Result;
using bhyve::UniqueFd;
using Napi::CallbackInfo;
using Napi::Env;
using Napi::Value;

// ---- arguments ----------------------------------------------------------------------------------

[[noreturn]] void refuse(const Env &env, const char *message) {
  throw Napi::TypeError::New(env, message);
}

int intArgument(const CallbackInfo &info, size_t index) {
  if (!info[index].IsNumber())
    refuse(info.Env(), "an integer is expected");
  return info[index].As<Napi::Number>().Int32Value();
}

// A place in a file: what a double holds exactly.
std::int64_t offsetArgument(const CallbackInfo &info, size_t index) {
  constexpr double kMost = 9007199254740991;
  const double number = info[index].IsNumber() ? info[index].As<Napi::Number>().DoubleValue() : -1;
  const bool isOffset = number >= 0 && number <= kMost; // not so for what is no number
  if (!isOffset)
    refuse(info.Env(), "an offset is expected");
  return static_cast<std::int64_t>(number);
}

std::string textArgument(const CallbackInfo &info, size_t index) {
  if (!info[index].IsString())
    refuse(info.Env(), "a string is expected");
  std::string text = info[index].As<Napi::String>().Utf8Value();
  // The systems' calls would take the part before the NUL for the whole.
  if (text.find('\0') != std::string::npos)
    refuse(info.Env(), "a string without NUL is expected");
  return text;
}

// A file's name: text, or bytes where it is no valid UTF-8.
std::string nameArgument(const CallbackInfo &info, size_t index) {
  if (!info[index].IsTypedArray())
    return textArgument(info, index);
  const auto bytes = info[index].As<Napi::TypedArray>();
  if (bytes.TypedArrayType() != napi_uint8_array)
    refuse(info.Env(), "a name is expected");
  const auto octets = bytes.As<Napi::Uint8Array>();
  return {reinterpret_cast<const char *>(octets.Data()), octets.ByteLength()};
}

Napi::Uint8Array bytesArgument(const CallbackInfo &info, size_t index) {
  if (!info[index].IsTypedArray() || info[index].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    refuse(info.Env(), "a Uint8Array is expected");
  return info[index].As<Napi::Uint8Array>();
}

// ---- results ------------------------------------------------------------------------------------

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

Value toValue(const Env &env, const bhyve::DataRange &range) {
  auto object = Napi::Object::New(env);
  object.Set("start", range.start);
  object.Set("end", range.end);
  return object;
}

bhyve::DescriptorTable &tableOf(const Env &env) {
  return *env.GetInstanceData<bhyve::DescriptorTable>();
}

Value toValue(const Env &env, UniqueFd &descriptor) {
  return Napi::Number::New(env, tableOf(env).own(std::move(descriptor)));
}

const char *nameOf(bhyve::FileKind kind) {
  switch (kind) {
  case bhyve::FileKind::File:
    return "file";
  case bhyve::FileKind::Directory:
    return "directory";
  case bhyve::FileKind::Symlink:
    return "symlink";
  case bhyve::FileKind::Socket:
    return "socket";
  case bhyve::FileKind::Fifo:
    return "fifo";
  case bhyve::FileKind::Other:
    return "other";
  }
  return "other";
}

Value toValue(const Env &env, const bhyve::FileStatus &status) {
  auto object = Napi::Object::New(env);
  object.Set("kind", nameOf(status.kind));
  object.Set("size", status.size);
  object.Set("allocatedBytes", status.allocatedBytes);
  object.Set("mtimeMs", status.mtimeMs);
  object.Set("identity", status.identity);
  object.Set("links", status.links);
  object.Set("uid", status.uid);
  object.Set("mode", status.mode);
  return object;
}

Value toValue(const Env &env, const bhyve::Peer &peer) {
  auto object = Napi::Object::New(env);
  object.Set("uid", static_cast<double>(peer.uid));
  object.Set("pid", static_cast<double>(peer.pid));
  return object;
}

const char *nameOf(bhyve::ProcessState state) {
  switch (state) {
  case bhyve::ProcessState::Running:
    return "running";
  case bhyve::ProcessState::Stopped:
    return "stopped";
  case bhyve::ProcessState::Zombie:
    return "zombie";
  }
  return "running";
}

Value toValue(const Env &env, const bhyve::ProcessStatus &status) {
  auto object = Napi::Object::New(env);
  object.Set("state", nameOf(status.state));
  object.Set("startedAt", status.startedAt);
  return object;
}

Value toValue(const Env &env, const std::vector<int> &numbers) {
  auto array = Napi::Array::New(env, numbers.size());
  for (std::uint32_t i = 0; i < numbers.size(); i++)
    array.Set(i, numbers[i]);
  return array;
}

Value toValue(const Env &env, bhyve::ReceivedDescriptors &received) {
  auto descriptors = Napi::Array::New(env, received.descriptors.size());
  for (std::uint32_t i = 0; i < received.descriptors.size(); i++)
    descriptors.Set(i, toValue(env, received.descriptors[i]));
  auto object = Napi::Object::New(env);
  object.Set("bytes", static_cast<double>(received.bytes));
  object.Set("descriptors", descriptors);
  object.Set("truncated", received.truncated);
  return object;
}

template <typename T> Value toValue(const Env &env, Result<T> result) {
  return std::visit([&](auto &alternative) { return toValue(env, alternative); }, result);
}

// ---- nvlist and requests ------------------------------------------------------------------------

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

std::uint64_t scalarFrom(const Env &env, const Value &value) {
  bool lossless = false;
  if (!value.IsBigInt())
    refuse(env, "a bigint is expected");
  const std::uint64_t scalar = value.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless)
    refuse(env, "a bigint of 64 bits without sign is expected");
  return scalar;
}

std::string stringFrom(const Env &env, const Value &value, bool nulAllowed) {
  if (!value.IsString())
    refuse(env, "a string is expected");
  std::string text = value.As<Napi::String>().Utf8Value();
  if (!nulAllowed && text.find('\0') != std::string::npos)
    refuse(env, "a string without NUL is expected");
  return text;
}

bhyve::nvlist::Pair pairFrom(const Env &env, const Napi::Object &object) {
  using bhyve::nvlist::Pair;
  const std::string name = stringFrom(env, object.Get("name"), false);
  const std::string type = stringFrom(env, object.Get("type"), false);
  const Value value = object.Get("value");
  if (name.size() >= 2048)
    refuse(env, "a name of at most 2047 bytes is expected");
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
  refuse(env, "type and value of a pair do not fit");
}

Value encodeNvlist(const CallbackInfo &info) {
  if (!info[0].IsArray())
    refuse(info.Env(), "an array of pairs is expected");
  const auto array = info[0].As<Napi::Array>();
  bhyve::nvlist::List pairs;
  for (std::uint32_t i = 0; i < array.Length(); i++) {
    const Value pair = array[i];
    if (!pair.IsObject())
      refuse(info.Env(), "a pair is expected");
    pairs.push_back(pairFrom(info.Env(), pair.As<Napi::Object>()));
  }
  return toValue(info.Env(), bhyve::nvlist::encode(pairs));
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
  refuse(env, "a dialect is expected: struct, path or descriptor");
}

bhyve::Operation operationFrom(const Env &env, const std::string &name) {
  if (name == "checkpoint")
    return bhyve::Operation::Checkpoint;
  if (name == "suspend")
    return bhyve::Operation::Suspend;
  if (name == "refused")
    return bhyve::Operation::Refused;
  refuse(env, "an operation is expected: checkpoint, suspend or refused");
}

Value encodeRequest(const CallbackInfo &info) {
  const auto request =
      bhyve::encodeRequest(dialectFrom(info.Env(), textArgument(info, 0)),
                           operationFrom(info.Env(), textArgument(info, 1)), textArgument(info, 2));
  if (!request)
    refuse(info.Env(), "this dialect has no room for that request");
  return toValue(info.Env(), *request);
}

// ---- sockets ------------------------------------------------------------------------------------

Value connectStream(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::connectStream(textArgument(info, 0)));
}
Value peerOf(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::peerOf(intArgument(info, 0)));
}

Value sendBytes(const CallbackInfo &info) {
  const auto bytes = bytesArgument(info, 1);
  const int offset = intArgument(info, 2);
  if (offset < 0 || static_cast<size_t>(offset) > bytes.ByteLength())
    refuse(info.Env(), "an offset inside the bytes is expected");
  return toValue(info.Env(), bhyve::sendBytes(intArgument(info, 0), bytes.Data() + offset,
                                              bytes.ByteLength() - static_cast<size_t>(offset)));
}

Value sendDescriptor(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::sendDescriptor(intArgument(info, 0), intArgument(info, 1)));
}
Value shutdownWrite(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::shutdownWrite(intArgument(info, 0)));
}
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
    refuse(info.Env(), "a positive length is expected");
  return toValue(info.Env(), bhyve::receiveBytes(intArgument(info, 0), static_cast<size_t>(length)));
}

Value receiveDescriptors(const CallbackInfo &info) {
  const int expected = intArgument(info, 1);
  if (expected < 1)
    refuse(info.Env(), "a positive number of descriptors is expected");
  return toValue(info.Env(), bhyve::receiveDescriptors(intArgument(info, 0), static_cast<size_t>(expected)));
}

Value pollReadable(const CallbackInfo &info) {
  if (!info[0].IsArray())
    refuse(info.Env(), "an array of descriptors is expected");
  const auto array = info[0].As<Napi::Array>();
  std::vector<int> descriptors;
  for (std::uint32_t i = 0; i < array.Length(); i++) {
    const Value descriptor = array[i];
    if (!descriptor.IsNumber())
      refuse(info.Env(), "an array of descriptors is expected");
    descriptors.push_back(descriptor.As<Napi::Number>().Int32Value());
  }
  return toValue(info.Env(), bhyve::pollReadable(descriptors, intArgument(info, 1)));
}

// ---- directories --------------------------------------------------------------------------------

Value openPath(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::openPath(textArgument(info, 0), intArgument(info, 1)));
}
Value openAt(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::openAt(intArgument(info, 0), nameArgument(info, 1), intArgument(info, 2),
                                           intArgument(info, 3)));
}
Value readStartAt(const CallbackInfo &info) {
  auto bytes = bytesArgument(info, 2);
  return toValue(info.Env(), bhyve::readStartAt(intArgument(info, 0), nameArgument(info, 1), bytes.Data(),
                                                bytes.ByteLength()));
}
Value makeDirectoryAt(const CallbackInfo &info) {
  return toValue(info.Env(),
                 bhyve::makeDirectoryAt(intArgument(info, 0), nameArgument(info, 1), intArgument(info, 2)));
}
Value statusAt(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::statusAt(intArgument(info, 0), nameArgument(info, 1)));
}
Value statusOf(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::statusOf(intArgument(info, 0)));
}
Value renameAt(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::renameAt(intArgument(info, 0), nameArgument(info, 1),
                                             intArgument(info, 2), nameArgument(info, 3)));
}
Value unlinkAt(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::unlinkAt(intArgument(info, 0), nameArgument(info, 1)));
}
Value removeDirectoryAt(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::removeDirectoryAt(intArgument(info, 0), nameArgument(info, 1)));
}
#if defined(__FreeBSD__) || defined(__APPLE__)
Value clearFlagsAt(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::clearFlagsAt(intArgument(info, 0), nameArgument(info, 1)));
}
#endif

Value readDirectory(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::readDirectory(intArgument(info, 0)));
}
Value syncDescriptor(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::syncDescriptor(intArgument(info, 0)));
}

Value lockDescriptor(const CallbackInfo &info) {
  const std::string mode = textArgument(info, 1);
  if (mode != "shared" && mode != "exclusive")
    refuse(info.Env(), "a lock mode is expected: shared or exclusive");
  return toValue(info.Env(),
                 bhyve::lockDescriptor(intArgument(info, 0), mode == "shared" ? bhyve::LockMode::Shared
                                                                              : bhyve::LockMode::Exclusive));
}

Value unlockDescriptor(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::unlockDescriptor(intArgument(info, 0)));
}
Value freeSpace(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::freeSpace(intArgument(info, 0)));
}

// ---- memory images ------------------------------------------------------------------------------

Value zeroRuns(const CallbackInfo &info) {
  const auto bytes = bytesArgument(info, 0);
  const std::int64_t blockBytes = offsetArgument(info, 1);
  if (blockBytes < 1 || bytes.ByteLength() > std::numeric_limits<std::uint32_t>::max())
    refuse(info.Env(), "a block size and at most 4 GiB are expected");
  const auto runs = bhyve::zeroRuns(bytes.Data(), bytes.ByteLength(), static_cast<size_t>(blockBytes));
  auto array = Napi::Uint32Array::New(info.Env(), runs.size());
  std::copy(runs.begin(), runs.end(), array.Data());
  return {info.Env(), array};
}

Value holeBlockBytes(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::holeBlockBytes(intArgument(info, 0)));
}
Value punchHole(const CallbackInfo &info) {
  return toValue(info.Env(),
                 bhyve::punchHole(intArgument(info, 0), offsetArgument(info, 1), offsetArgument(info, 2)));
}
Value beginWriting(const CallbackInfo &info) {
  return toValue(info.Env(),
                 bhyve::beginWriting(intArgument(info, 0), offsetArgument(info, 1), offsetArgument(info, 2)));
}
Value dataRange(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::dataRange(intArgument(info, 0), offsetArgument(info, 1)));
}

Value setModifiedAt(const CallbackInfo &info) {
  bool lossless = false;
  if (!info[1].IsBigInt())
    refuse(info.Env(), "a bigint is expected");
  const std::int64_t nanoseconds = info[1].As<Napi::BigInt>().Int64Value(&lossless);
  if (!lossless)
    refuse(info.Env(), "a bigint of 64 bits is expected");
  return toValue(info.Env(), bhyve::setModifiedAt(intArgument(info, 0), nanoseconds));
}

// ---- processes and ownership --------------------------------------------------------------------

Value processStatus(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::processStatus(static_cast<pid_t>(intArgument(info, 0))));
}
Value signalProcess(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::signalProcess(static_cast<pid_t>(intArgument(info, 0)),
                                                  textArgument(info, 1), intArgument(info, 2)));
}
Value watchProcess(const CallbackInfo &info) {
  return toValue(info.Env(),
                 bhyve::watchProcess(static_cast<pid_t>(intArgument(info, 0)), textArgument(info, 1)));
}
Value hasEnded(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::hasEnded(intArgument(info, 0)));
}
Value dieBy(const CallbackInfo &info) {
  bhyve::dieBy(intArgument(info, 0));
}

Value adopt(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::duplicate(intArgument(info, 0)));
}

Value disown(const CallbackInfo &info) {
  tableOf(info.Env()).disown(intArgument(info, 0));
  return info.Env().Undefined();
}

Value closeOwned(const CallbackInfo &info) {
  if (!tableOf(info.Env()).close(intArgument(info, 0)))
    refuse(info.Env(), "this descriptor is not open, or somebody else's");
  return info.Env().Undefined();
}

Value ownedDescriptors(const CallbackInfo &info) {
  return Napi::Number::New(info.Env(), static_cast<double>(tableOf(info.Env()).size()));
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(std::make_unique<bhyve::DescriptorTable>().release());
  exports.Set("socketPathCapacity", static_cast<double>(bhyve::kSocketPathCapacity));
  const auto method = [&](const char *name, Value (*call)(const CallbackInfo &)) {
    exports.Set(name, Napi::Function::New(env, call, name));
  };
  method("encodeNvlist", encodeNvlist);
  method("decodeNvlist", decodeNvlist);
  method("encodeRequest", encodeRequest);
  method("connectStream", connectStream);
  method("peerOf", peerOf);
  method("send", sendBytes);
  method("sendDescriptor", sendDescriptor);
  method("shutdownWrite", shutdownWrite);
  method("listenStream", listenStream);
  method("bindDatagram", bindDatagram);
  method("accept", acceptConnection);
  method("receive", receiveBytes);
  method("receiveDescriptors", receiveDescriptors);
  method("poll", pollReadable);
  method("openPath", openPath);
  method("openAt", openAt);
  method("readStartAt", readStartAt);
  method("makeDirectoryAt", makeDirectoryAt);
  method("statusAt", statusAt);
  method("statusOf", statusOf);
  method("renameAt", renameAt);
  method("unlinkAt", unlinkAt);
  method("removeDirectoryAt", removeDirectoryAt);
#if defined(__FreeBSD__) || defined(__APPLE__)
  method("clearFlagsAt", clearFlagsAt);
#endif
  method("readDirectory", readDirectory);
  method("sync", syncDescriptor);
  method("lock", lockDescriptor);
  method("unlock", unlockDescriptor);
  method("freeSpace", freeSpace);
  method("zeroRuns", zeroRuns);
  method("holeBlockBytes", holeBlockBytes);
  method("punchHole", punchHole);
  method("beginWriting", beginWriting);
  method("dataRange", dataRange);
  method("setModifiedAt", setModifiedAt);
  method("processStatus", processStatus);
  method("signalProcess", signalProcess);
  method("watchProcess", watchProcess);
  method("hasEnded", hasEnded);
  method("dieBy", dieBy);
  method("adopt", adopt);
  method("disown", disown);
  method("close", closeOwned);
  method("ownedDescriptors", ownedDescriptors);
  return exports;
}

} // namespace

NODE_API_MODULE(bhyve_checkpoint, initialize)
