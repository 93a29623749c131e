// Exports the calls for processes and for the ownership of descriptors.

#include "../boot_identity.h"
#include "../directory.h"
#include "../process.h"
#include "../process_exit.h"
#include "calls.h"
#include "values.h"

namespace bhyve::addon {

namespace {

using Napi::CallbackInfo;
using Napi::Value;

Value processStatus(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::processStatus(static_cast<pid_t>(intArgument(info, 0))));
}
Value processArguments(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::processArguments(static_cast<pid_t>(intArgument(info, 0))));
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
Value descriptorLimit(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::descriptorLimit());
}
Value openDescriptors(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::openDescriptors());
}
Value hasWorkingDirectory(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::hasWorkingDirectory());
}
Value enterDirectory(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::enterDirectory(intArgument(info, 0)));
}

Value bootIdentity(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::bootIdentity());
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
    refuse(info.Env(), "The descriptor is not open, or the addon does not own it");
  return info.Env().Undefined();
}

Value ownedDescriptors(const CallbackInfo &info) {
  return Napi::Number::New(info.Env(), static_cast<double>(tableOf(info.Env()).size()));
}

} // namespace

void addProcessCalls(Napi::Object exports) {
  add(exports, "processStatus", processStatus);
  add(exports, "processArguments", processArguments);
  add(exports, "signalProcess", signalProcess);
  add(exports, "watchProcess", watchProcess);
  add(exports, "hasEnded", hasEnded);
  add(exports, "descriptorLimit", descriptorLimit);
  add(exports, "openDescriptors", openDescriptors);
  add(exports, "hasWorkingDirectory", hasWorkingDirectory);
  add(exports, "enterDirectory", enterDirectory);
  add(exports, "bootIdentity", bootIdentity);
  add(exports, "adopt", adopt);
  add(exports, "disown", disown);
  add(exports, "close", closeOwned);
  add(exports, "ownedDescriptors", ownedDescriptors);
}

} // namespace bhyve::addon
