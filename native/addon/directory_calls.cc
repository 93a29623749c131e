// Exports the calls for directories and files.

#include "../directory.h"
#include "../file_extents.h"
#include "../file_groups.h"
#include "../file_status.h"
#include "calls.h"
#include "values.h"

namespace bhyve::addon {

namespace {

using Napi::CallbackInfo;
using Napi::Value;

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
Value readGroups(const CallbackInfo &info) {
  const auto suffixes = namesArgument(info, 2);
  if (!info[3].IsArray())
    refuse(info.Env(), "Expected an array of numbers");
  const auto maxBytes = info[3].As<Napi::Array>();
  std::vector<bhyve::GroupFile> files;
  for (const auto &suffix : suffixes) {
    const auto index = static_cast<std::uint32_t>(files.size());
    files.push_back({suffix, maxBytes.Get(index).ToNumber().Uint32Value()});
  }
  auto into = bytesArgument(info, 4);
  const auto written =
      bhyve::readGroups(intArgument(info, 0), namesArgument(info, 1), files, into.Data(), into.ByteLength());
  return toValue(info.Env(), static_cast<std::int64_t>(written));
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
  return toValue(info.Env(), bhyve::readDirectory(intArgument(info, 0),
                                                  static_cast<std::size_t>(offsetArgument(info, 1))));
}
Value syncDescriptor(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::syncDescriptor(intArgument(info, 0)));
}

Value lockDescriptor(const CallbackInfo &info) {
  const std::string mode = textArgument(info, 1);
  if (mode != "shared" && mode != "exclusive")
    refuse(info.Env(), "Expected a lock mode: shared or exclusive");
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
Value isTmpfs(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::isTmpfs(intArgument(info, 0)));
}
#if defined(__linux__)
Value exclusiveBytes(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::exclusiveBytes(intArgument(info, 0)));
}
#endif

} // namespace

void addDirectoryCalls(Napi::Object exports) {
  add(exports, "openPath", openPath);
  add(exports, "openAt", openAt);
  add(exports, "readStartAt", readStartAt);
  add(exports, "readGroups", readGroups);
  add(exports, "makeDirectoryAt", makeDirectoryAt);
  add(exports, "statusAt", statusAt);
  add(exports, "statusOf", statusOf);
  add(exports, "renameAt", renameAt);
  add(exports, "unlinkAt", unlinkAt);
  add(exports, "removeDirectoryAt", removeDirectoryAt);
#if defined(__FreeBSD__) || defined(__APPLE__)
  add(exports, "clearFlagsAt", clearFlagsAt);
#endif
  add(exports, "readDirectory", readDirectory);
  add(exports, "sync", syncDescriptor);
  add(exports, "lock", lockDescriptor);
  add(exports, "unlock", unlockDescriptor);
  add(exports, "freeSpace", freeSpace);
  add(exports, "isTmpfs", isTmpfs);
#if defined(__linux__)
  add(exports, "exclusiveBytes", exclusiveBytes);
#endif
}

} // namespace bhyve::addon
