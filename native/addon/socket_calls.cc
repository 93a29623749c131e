// Exports the calls for the client side of bhyve's socket.

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
    refuse(info.Env(), "Expected an offset within the bytes");
  return toValue(info.Env(), bhyve::sendBytes(intArgument(info, 0), bytes.Data() + offset,
                                              bytes.ByteLength() - static_cast<size_t>(offset)));
}

Value sendDescriptor(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::sendDescriptor(intArgument(info, 0), intArgument(info, 1)));
}
Value shutdownWrite(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::shutdownWrite(intArgument(info, 0)));
}

} // namespace

void addSocketCalls(Napi::Object exports) {
  add(exports, "connectStream", connectStream);
  add(exports, "peerOf", peerOf);
  add(exports, "send", sendBytes);
  add(exports, "sendDescriptor", sendDescriptor);
  add(exports, "shutdownWrite", shutdownWrite);
}

} // namespace bhyve::addon
