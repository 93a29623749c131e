// The functions that the addon exports to JavaScript, grouped by topic. These files only convert arguments
// and results: every decision is made in TypeScript.
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
// Exports one object, so that a use in production code is easy to find.
void addSimulatorCalls(Napi::Object exports);

} // namespace bhyve::addon
