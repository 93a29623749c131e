// Both ends of bhyve's socket.

#include "../simulator/server_socket.h"
#include "../unix_socket.h"
#include "calls.h"
#include "values.h"

namespace bhyve::addon {

namespace {

using Napi::CallbackInfo;
using Napi::Value;

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

} // namespace

void addSocketCalls(Napi::Object exports) {
  add(exports, "connectStream", connectStream);
  add(exports, "peerOf", peerOf);
  add(exports, "send", sendBytes);
  add(exports, "sendDescriptor", sendDescriptor);
  add(exports, "shutdownWrite", shutdownWrite);
  add(exports, "listenStream", listenStream);
  add(exports, "bindDatagram", bindDatagram);
  add(exports, "accept", acceptConnection);
  add(exports, "receive", receiveBytes);
  add(exports, "receiveDescriptors", receiveDescriptors);
  add(exports, "poll", pollReadable);
}

} // namespace bhyve::addon
