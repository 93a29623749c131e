// What the addon offers JavaScript, room by room. Nothing in these files
// decides anything.
#pragma once

#include <napi.h>

namespace bhyve::addon {

inline void add(Napi::Object exports, const char *name, Napi::Value (*call)(const Napi::CallbackInfo &)) {
  exports.Set(name, Napi::Function::New(exports.Env(), call, name));
}

void addNvlistCalls(Napi::Object exports);
void addSocketCalls(Napi::Object exports);
void addDirectoryCalls(Napi::Object exports);
void addMemoryCalls(Napi::Object exports);
void addProcessCalls(Napi::Object exports);
// All in one object, so that a call of production code to one of them is seen.
void addSimulatorCalls(Napi::Object exports);

} // namespace bhyve::addon
