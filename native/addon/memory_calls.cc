// Exports the calls for guest RAM in files.

#include <algorithm>
#include <limits>

#include "../memory_image.h"
#include "calls.h"
#include "values.h"

namespace bhyve::addon {

namespace {

using Napi::CallbackInfo;
using Napi::Value;

Value zeroRuns(const CallbackInfo &info) {
  const auto bytes = bytesArgument(info, 0);
  const std::int64_t blockBytes = offsetArgument(info, 1);
  if (blockBytes < 1 || bytes.ByteLength() > std::numeric_limits<std::uint32_t>::max())
    refuse(info.Env(), "Expected a block size of at least 1 and at most 4 GiB of data");
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
Value cloneFile(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::cloneFile(intArgument(info, 0), intArgument(info, 1)));
}
Value dataRange(const CallbackInfo &info) {
  return toValue(info.Env(), bhyve::dataRange(intArgument(info, 0), offsetArgument(info, 1)));
}

Value setModifiedAt(const CallbackInfo &info) {
  bool lossless = false;
  if (!info[1].IsBigInt())
    refuse(info.Env(), "Expected a bigint");
  const std::int64_t nanoseconds = info[1].As<Napi::BigInt>().Int64Value(&lossless);
  if (!lossless)
    refuse(info.Env(), "Expected a 64-bit bigint");
  return toValue(info.Env(), bhyve::setModifiedAt(intArgument(info, 0), nanoseconds));
}

} // namespace

void addMemoryCalls(Napi::Object exports) {
  add(exports, "zeroRuns", zeroRuns);
  add(exports, "holeBlockBytes", holeBlockBytes);
  add(exports, "punchHole", punchHole);
  add(exports, "beginWriting", beginWriting);
  add(exports, "cloneFile", cloneFile);
  add(exports, "dataRange", dataRange);
  add(exports, "setModifiedAt", setModifiedAt);
}

} // namespace bhyve::addon
