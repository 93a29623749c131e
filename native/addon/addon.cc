// The entry point of the addon. Node calls it once for each environment.

#include <memory>

#include <napi.h>

#include "../descriptor_table.h"
#include "../unix_socket.h"
#include "calls.h"

namespace {

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(std::make_unique<bhyve::DescriptorTable>().release());
  exports.Set("socketPathCapacity", static_cast<double>(bhyve::kSocketPathCapacity));
  bhyve::addon::addNvlistCalls(exports);
  bhyve::addon::addSocketCalls(exports);
  bhyve::addon::addDirectoryCalls(exports);
  bhyve::addon::addMemoryCalls(exports);
  bhyve::addon::addProcessCalls(exports);
  bhyve::addon::addSimulatorCalls(exports);
  return exports;
}

} // namespace

NODE_API_MODULE(bhyve_checkpoint, initialize)
