/** Changes written by hand, in the library and in native code, and the tests that must detect each of them. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import ts from 'typescript'

const change = (id, file, tests, from, to) => ({ id, key: id, file, tests: tests.split(' '), from, to })

export const listed = [
  // The state of a VM.
  change(
    'suspend-not-held',
    'lib/store/stage_fate.ts',
    'sync_order failures',
    "this.#kind = 'holdsVm'",
    "this.#kind = 'discardable'",
  ),
  change(
    'freeze-not-proven',
    'lib/operations/saving/freeze.ts',
    'freeze',
    "(await stage.isStillFrozen()) ? 'captured' : 'missed'",
    "(await stage.isStillFrozen()) ? 'captured' : 'captured'",
  ),
  change(
    'held-for-ever',
    'lib/bhyve/freeze/guard_process.ts',
    'freeze',
    'this.#timer ??= setTimeout(() => this.#finish(true), this.#settings.freezeTimeout)',
    '',
  ),
  change(
    'second-dialect-on-freebsd',
    'lib/bhyve/dialects.ts',
    'create_targets',
    "return takesDescriptors(system.release) ? ['descriptor'] : ['path']",
    "return ['path', 'descriptor']",
  ),
  change(
    'struct-not-refused',
    'lib/bhyve/request.ts',
    'create_failures',
    "if (dialect === 'struct') await sendRefused(descriptor)",
    '',
  ),
  change(
    'created-now',
    'lib/operations/saving/publish_checkpoint.ts',
    'create suspend suspended_state',
    'createdAt: new Date(savedMs)',
    'createdAt: new Date()',
  ),
  change('live-stage-kept', 'lib/store/stage_fate.ts', 'create', 'if (this.#poweroff) ', ''),
  change(
    'state-not-complete',
    'lib/store/staging/orphans.ts',
    'orphans',
    'if (intent.poweroff && holdsCompleteCheckpoint(stage, intent.name)) return false',
    '',
  ),
  change(
    'torn-manifest',
    'lib/store/staging/stage_files.ts',
    'orphans durability',
    "problems.every(({ code }) => code === 'manifest-invalid')",
    'problems.length === 0',
  ),
  change(
    'failed-check-is-death',
    'lib/store/staging/intent.ts',
    'orphans',
    'if (isFailure(status)) return status.errno !== ESRCH',
    'if (isFailure(status)) return false',
  ),
  change(
    'same-tick',
    'lib/store/commit/replaceable.ts',
    'orphans',
    'isSuspendedState ? existingMs < savedMs : existingMs <= savedMs',
    'isSuspendedState ? existingMs <= savedMs : existingMs <= savedMs',
  ),
  change(
    'same-tick-other',
    'lib/store/commit/replaceable.ts',
    'orphans',
    'isSuspendedState ? existingMs < savedMs : existingMs <= savedMs',
    'isSuspendedState ? existingMs < savedMs : existingMs < savedMs',
  ),
  change(
    'later-request-of-a-reused-pid',
    'lib/store/staging/orphans.ts',
    'orphans',
    ' || writer.startedAt !== startedAt || bootOf',
    ' || bootOf',
  ),
  change(
    'later-request-after-a-reboot',
    'lib/store/staging/orphans.ts',
    'orphans',
    " || bootOf(stage) === 'another') return false",
    ') return false',
  ),
  change(
    'unknown-fate-runs-on',
    'lib/operations/saving/suspend_failure.ts',
    'suspend suspended_state killed_manager',
    "if (before === 'unknown') return failure.toError(before, unknownIn(stage.path))",
    '',
  ),
  change(
    'link-is-noticed',
    'lib/operations/saving/suspend_failure.ts',
    'suspended_state suspend',
    "  'memory-empty',\n",
    "  'memory-empty',\n  'not-a-regular-file',\n",
  ),
  change(
    'foreign-is-noticed',
    'lib/operations/saving/suspend_failure.ts',
    'suspended_state suspend',
    "  'memory-empty',\n",
    "  'memory-empty',\n  'foreign-format',\n",
  ),
  change(
    'cancelled-state-not-published',
    'lib/operations/suspend.ts',
    'suspend suspended_state killed_manager',
    'publish(stage, checkpoint, publishing, call.progress, call.cancellation.uncancellable)',
    'publish(stage, checkpoint, publishing, call.progress, call.cancellation)',
  ),
  change(
    'older-replaces-state',
    'lib/store/commit/publish.ts',
    'suspend suspended_state killed_manager',
    'assertNotOlder(directory, { vm, name, savedMs: Date.parse(createdAt), poweredOff })',
    '',
  ),
  change(
    'recovered-replaces-newer',
    'lib/store/commit/salvage.ts',
    'orphans',
    'assertNotOlder(directory, { vm, name, savedMs, poweredOff: true })',
    '',
  ),
  change(
    'committed-replaces-state',
    'lib/store/commit/salvage.ts',
    'orphans',
    'if (stuck.has(name)) return false',
    '',
  ),
  change(
    'linked-not-copied',
    'lib/store/commit/salvage.ts',
    'second_names',
    'copyLinked(stage, intent.name)',
    '',
  ),
  change(
    'unreadable-state-overlooked',
    'lib/store/catalog/suspended.ts',
    'suspend suspended_state killed_manager',
    'sinceMs) return []\n    throw error',
    'sinceMs) return []\n    return []',
  ),
  change(
    'unfinished-state-overlooked',
    'lib/store/catalog/suspended.ts',
    'orphans',
    '    assertNoneUnpublished(staging, stuck)',
    '',
  ),
  change(
    'earlier-name-committed',
    'lib/store/commit/roll_forward.ts',
    'second_names',
    'return entries.filter((entry) => files.has(entry))',
    'return entries',
  ),
  change(
    'outdated-manifest-comes-back',
    'lib/store/commit/roll_forward.ts',
    'second_names',
    '  removeOutdated(directory, subdirectory, entries)\n',
    '',
  ),
  change(
    'files-of-a-new-checkpoint',
    'lib/store/commit/recover.ts',
    'store',
    'if (directory.statusIfAny(name + memorySuffix) !== undefined) return\n',
    '\n',
  ),
  change(
    'queued-behind-is-handled',
    'lib/operations/saving/vm_request.ts',
    'suspend suspended_state killed_manager',
    'if ((await isUntouched(this.#stage)) === false) {',
    '{',
  ),
  change(
    'failed-poll-is-service',
    'lib/operations/saving/vm_request.ts',
    'suspend suspended_state killed_manager',
    'if ((await isUntouched(this.#stage)) === false) {',
    'if ((await isUntouched(this.#stage)) !== true) {',
  ),
  change(
    'publishing-overlooked',
    'lib/store/catalog/suspended.ts',
    'suspend suspended_state killed_manager',
    "if (isBeingPublished(staging)) return { kind: 'publishing' }",
    '',
  ),
  change(
    'remains-of-a-vm-removed',
    'lib/store/commit/salvage.ts',
    'orphans',
    'if (inbox !== undefined && inbox.rawEntries(1).length > 0) unexpectedFiles.push(inboxName)',
    '',
  ),
  // Fsyncs.
  change(
    'orphan-small-not-synced',
    'lib/store/staging/durability.ts',
    'durability',
    'stage.syncFile(name + kernelSuffix)',
    '',
  ),
  change(
    'orphan-memory-not-synced',
    'lib/store/staging/durability.ts',
    'durability',
    'stage.syncFile(name + memorySuffix)',
    '',
  ),
  change('inbox-not-synced', 'lib/store/staging/durability.ts', 'durability', 'inbox?.sync()', ''),
  change(
    'intent-not-synced',
    'lib/store/staging/intent.ts',
    'sync_order',
    'formatIntent(intent, bootIdentity()), intent.poweroff)',
    'formatIntent(intent, bootIdentity()), false)',
  ),
  change(
    'stage-not-synced',
    'lib/store/commit/begin.ts',
    'sync_order',
    'request.intent?.poweroff === true',
    'false',
  ),
  change('pin-not-synced', 'lib/store/commit/commit.ts', 'sync_order', 'if (durable) stage.sync()', ''),
  change(
    'commit-not-synced',
    'lib/store/commit/commit.ts',
    'sync_order',
    'if (publication.durable) staging.sync()',
    '',
  ),
  change(
    'record-not-synced',
    'lib/store/catalog/rewrite_manifest.ts',
    'sync_order',
    'subdirectory.rename(file, directory, file)\n    directory.sync()',
    'subdirectory.rename(file, directory, file)',
  ),
  change(
    'writer-not-synced',
    'lib/store/staging/intent.ts',
    'sync_order',
    'JSON.stringify(writer), stage.statusIfAny(intentRecord) !== undefined',
    'JSON.stringify(writer), false',
  ),
  change(
    'scanned-before-synced',
    'lib/operations/suspend.ts',
    'suspend suspended_state killed_manager',
    'if (settings.publication.durable) await explained(suspending, stage.flush(settings.name))',
    '',
  ),
  change('copy-not-synced', 'lib/store/staging/own_files.ts', 'sync_order', 'to.sync()', ''),
  change(
    'recovered-manifest-not-synced',
    'lib/store/commit/salvage.ts',
    'sync_order',
    'storeManifest(stage, manifest)\n  stage.sync()',
    'storeManifest(stage, manifest)',
  ),
  change(
    'damaged-not-synced',
    'lib/store/commit/salvage.ts',
    'sync_order',
    'if (stage.statusIfAny(name + suffix) !== undefined) stage.syncFile(name + suffix)',
    '',
  ),
  change(
    'damaged-commit-not-synced',
    'lib/store/commit/salvage.ts',
    'sync_order',
    'id + readySuffix)\n  staging.sync()',
    'id + readySuffix)',
  ),
  change(
    'kept-live-not-synced',
    'lib/store/commit/live_stage.ts',
    'sync_order',
    'for (const suffix of publicationOrder) stage.syncFile(name + suffix)',
    '',
  ),
  change(
    'published-not-synced',
    'lib/store/commit/roll_forward.ts',
    'sync_order',
    '  directory.sync()\n',
    '',
  ),
  change(
    'source-not-synced',
    'lib/store/commit/roll_forward.ts',
    'sync_order',
    '  subdirectory.sync()\n',
    '',
  ),
  change(
    'recovered-trash-not-synced',
    'lib/store/commit/recover.ts',
    'unmovable',
    '  subdirectory.sync()\n  directory.sync()\n',
    '',
  ),
  change(
    'trash-not-synced',
    'lib/store/catalog/destroy.ts',
    'call_order',
    '  trash.sync()\n  directory.sync()\n',
    '',
  ),
  change(
    'failed-sync-ignored-after-a-reboot',
    'lib/store/staging/durability.ts',
    'durability',
    "return hasFailed && boot === 'this'",
    'return hasFailed',
  ),
  change(
    'unknown-boot-is-this',
    'lib/store/staging/boot_identity.ts',
    'durability',
    "return 'unknown'",
    "return 'this'",
  ),
  change('rest-not-synced', 'lib/store/commit/salvage.ts', 'sync_order', '  rest.sync()\n', ''),
  // Restore.
  change(
    'failed-poll-did-not-run',
    'lib/operations/restore/start.ts',
    'restore_records',
    '} catch {\n    return true',
    '} catch {\n    return false',
  ),
  change(
    'ending-process-serves',
    'lib/operations/restore/start.ts',
    'restored_process',
    "found.peer.pid === pid && knownStateOf(found.peer) !== 'off'",
    'found.peer.pid === pid',
  ),
  change(
    'revokes-record-of-another',
    'lib/store/catalog/restore_records.ts',
    'restore_records',
    'if (inspection.manifest?.restoredAt !== record.at) return false',
    'if (inspection.manifest === undefined) return false',
  ),
  change(
    'held-despite-new-record',
    'lib/store/catalog/restore_records.ts',
    'restore_records',
    'if (isDamaged || inspection.manifest?.restoredAt !== record.at) return undefined',
    'if (isDamaged) return undefined',
  ),
  change(
    'recorded-despite-replacement',
    'lib/store/catalog/restore_records.ts',
    'restore_guards',
    'if (inspection.identity !== identity || blocksStart(inspection.manifest?.move)) return undefined\n',
    '\n',
  ),
  change(
    'held-despite-replacement',
    'lib/store/catalog/restore_records.ts',
    'restore_guards',
    'inspection?.identity !== identity) return',
    'inspection === undefined) return',
  ),
  // Calls about many checkpoints.
  change('dry-run-destroys', 'lib/store/catalog/destroy.ts', 'many_vms', 'if (dryRun) return names', ''),
  change(
    'prune-scope-ignored',
    'lib/store/catalog/prune.ts',
    'prune_rules many_vms',
    'const checkpoints = inScope(all, policy)',
    'const checkpoints = all',
  ),
  change(
    'last-of-the-scope-only',
    'lib/store/catalog/prune.ts',
    'prune_rules many_vms',
    'const last = all',
    'const last = checkpoints',
  ),
  change(
    'untrusted-arguments-copied',
    'lib/store/catalog/rewrite_manifest.ts',
    'arguments_distrust',
    'distrustOf(status) === undefined ? text : withoutArguments(text)',
    'text',
  ),
  // Unreadable files.
  change(
    'unreadable-destroyed',
    'lib/store/catalog/destroy.ts',
    'prune',
    'isForeign(directory, name) === false)',
    'isForeign(directory, name) !== true)',
  ),
  change('unreadable-pruned', 'lib/store/catalog/prune.ts', 'prune', "code === 'unreadable' || ", ''),
  change(
    'unreadable-manifest-pruned',
    'lib/store/catalog/prune.ts',
    'prune',
    ' || file?.endsWith(manifestSuffix) === true',
    '',
  ),
  // Locks and identity.
  change(
    'lock-of-a-removed-directory',
    'lib/store/staging/lock.ts',
    'identity',
    'taken = directory.statusIfAny(stagingName)?.identity === staging.ownStatus().identity',
    'taken = true',
  ),
  change(
    'staging-of-others',
    'lib/store/staging/lock.ts',
    'identity',
    'if (uid !== process.geteuid?.()) {',
    'if (uid === -1) {',
  ),
  change(
    'reused-pid',
    'lib/store/staging/intent.ts',
    'orphans',
    'return startedAt === undefined || status.startedAt === startedAt',
    'return true',
  ),
  change(
    'renamed-intent-replaces',
    'lib/store/staging/intent.ts',
    'orphans',
    "name, ifExists: 'fail', wanted }",
    'name, wanted }',
  ),
  change(
    'identity-without-time',
    'lib/checkpoint/structure.ts',
    'identity',
    '`${identity} ${mtimeMs} ${size}`',
    '`${identity} ${size}`',
  ),
  change(
    'identity-without-size',
    'lib/checkpoint/structure.ts',
    'identity',
    '`${identity} ${mtimeMs} ${size}`',
    '`${identity} ${mtimeMs}`',
  ),
  change(
    'replaced-between-inspection-and-open',
    'lib/store/catalog/open_checkpoint.ts',
    'identity',
    'if (isUnchanged(directory, name, files, inspection) || attempt === maxAttempts) {',
    'if (attempt >= 1) {',
  ),
  change(
    'directory-in-the-way',
    'lib/store/commit/replaceable.ts',
    'store',
    '[memorySuffix, kernelSuffix, metadataSuffix, manifestSuffix]',
    '[memorySuffix]',
  ),
  change(
    'no-request-is-publishing',
    'lib/store/commit/recover.ts',
    'orphans',
    'return writerOf(stage) !== undefined || holdsAnything(stage)',
    'return true',
  ),
  change(
    'inbox-to-another-trusted',
    'lib/bhyve/peer.ts',
    'doubtful_peers',
    'trustedUids.includes(peer.uid) && (peer.uid === 0 || peer.uid === located.ownerUid)',
    'trustedUids.includes(peer.uid)',
  ),
  change(
    'store-moved-away',
    'lib/store/staging/opening.ts',
    'identity',
    'if (present?.ownStatus().identity === directory.ownStatus().identity) {',
    'if (directory !== undefined) {',
  ),
  change(
    'restore-lock-of-a-removed-file',
    'lib/store/staging/restore_lock.ts',
    'identity',
    'isTaken = isPresent(staging, file)\n',
    'isTaken = true\n',
  ),
  change(
    'staging-open-to-others',
    'lib/store/staging/lock.ts',
    'identity',
    'if ((mode & 0o077) !== 0) staging.setMode(ownerOnly)',
    '',
  ),
  change(
    'lock-kept-by-a-copy',
    'lib/fs/directory.ts',
    'store',
    'if (this.#locked) loadNative().unlock(this.descriptor)',
    '',
  ),
  change(
    'restore-lock-kept-by-a-copy',
    'lib/fs/open_file.ts',
    'store',
    'if (this.#locked) loadNative().unlock(this.descriptor)',
    '',
  ),
  change(
    'stage-lock-kept-by-a-copy',
    'lib/store/stage.ts',
    'store',
    'loadNative().unlock(this.#handle.stage)',
    '',
  ),
  change(
    'check-counts-as-owner',
    'lib/store/staging/staging_entries.ts',
    'orphans',
    "stage.lock('shared')",
    "stage.lock('exclusive')",
  ),
  change(
    'second-request-to-another',
    'lib/bhyve/request.ts',
    'doubtful_peers',
    'if (expected !== undefined) assertSame(peer, expected, target)',
    '',
  ),
  // Requests and processes.
  change('turn-kept', 'lib/client/vm_queue.ts', 'lifecycle', 'end()\n      throw error', 'throw error'),
  change(
    'cancel-while-recorded',
    'lib/operations/create.ts',
    'lifecycle suspend suspended_state killed_manager',
    'stage.recordWriter(writer, () => cancellation.begin())',
    'stage.recordWriter(writer, () => undefined)',
  ),
  change(
    'late-cancel-forgotten',
    'lib/base/cancellation.ts',
    'waiting',
    'if (this.#late !== undefined) this.cancel(this.#late)',
    '',
  ),
  change(
    'not-running-retried',
    'lib/operations/saving/vm_request.ts',
    'doubtful_peers',
    "if (knownStateOf(peer) !== 'running') return false",
    '',
  ),
  // Native code.
  ...['open(path.c_str(), flags', 'openat(directory, name.c_str(), flags'].map((call, index) =>
    change(
      `inherited-${index === 0 ? 'path' : 'at'}`,
      'native/directory.cc',
      'native',
      `::${call} | O_CLOEXEC`,
      `::${call}`,
    ),
  ),
  change(
    'inherited-listing',
    'native/directory.cc',
    'native',
    'O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));\n  if (!own',
    'O_RDONLY | O_DIRECTORY); }));\n  if (!own',
  ),
  change(
    'inherited-socket',
    'native/unix_socket.cc',
    'native',
    'type | SOCK_CLOEXEC | SOCK_NONBLOCK',
    'type | SOCK_NONBLOCK',
  ),
  change('inherited-copy', 'native/directory.cc', 'native', 'F_DUPFD_CLOEXEC', 'F_DUPFD'),
  change(
    'start-through-link',
    'native/directory.cc',
    'native',
    'O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0',
    'O_RDONLY | O_NONBLOCK, 0',
  ),
  change(
    'start-of-a-fifo',
    'native/directory.cc',
    'native',
    'O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0',
    'O_RDONLY | O_NOFOLLOW, 0',
  ),
  change(
    'inherited-accepted',
    'native/simulator/server_socket.cc',
    'native',
    'nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK',
    'nullptr, SOCK_NONBLOCK',
  ),
  change(
    'inherited-received',
    'native/simulator/server_socket.cc',
    'native',
    'kReceiveFlags = MSG_CMSG_CLOEXEC',
    'kReceiveFlags = 0',
  ),
  change(
    'inherited-status',
    'native/process.cc',
    'native',
    '::open(path.c_str(), O_RDONLY | O_CLOEXEC)',
    '::open(path.c_str(), O_RDONLY)',
  ),
  change(
    'inherited-boot',
    'native/boot_identity.cc',
    'native',
    '"/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC',
    '"/proc/sys/kernel/random/boot_id", O_RDONLY',
  ),
  change('path-for-a-name', 'native/file_status.cc', 'wire', " && name.find('/') == std::string::npos", ''),
  change(
    'status-through-link',
    'native/file_status.cc',
    'catalog store',
    'kFlags = AT_SYMLINK_NOFOLLOW | AT_STATX_SYNC_AS_STAT',
    'kFlags = AT_STATX_SYNC_AS_STAT',
  ),
  change(
    'torn-status',
    'native/process.cc',
    'native',
    'if (started.empty())\n    return Failure{ESRCH, "read"};',
    '',
  ),
  change(
    'signal-to-another',
    'native/process.cc',
    'virtual_machines',
    'if (std::get<ProcessStatus>(status).startedAt != startedAt)\n    return Failure{ESRCH, "kill"};',
    '',
  ),
  change(
    'watch-of-another',
    'native/process_exit.cc',
    'suspend suspended_state killed_manager',
    'if (std::get<ProcessStatus>(status).startedAt != startedAt)\n    return Failure{ESRCH, "watch"};',
    '',
  ),
  change(
    'directory-half-read',
    'native/directory.cc',
    'native',
    'if (errno != 0)\n    return failureOf("readdir");',
    '',
  ),
  change(
    'failed-lock-is-busy',
    'native/directory.cc',
    'native',
    'if (errno == EWOULDBLOCK)\n    return 0;\n  return failureOf("flock");',
    'return 0;',
  ),
  change('any-bracket-ends-the-command', 'native/process.cc', 'native', "line.rfind(')')", "line.find(')')"),
  change(
    'exiting-not-seen',
    'native/process.cc',
    'native',
    '|| letter == "X" || exiting',
    '|| letter == "X"',
  ),
  change('dead-not-seen', 'native/process.cc', 'native', '|| letter == "X" || exiting', '|| exiting'),
  change(
    'traced-is-stopped',
    'native/process.cc',
    'native',
    'letter == "T" ? ProcessState::Stopped',
    '(letter == "T" || letter == "t") ? ProcessState::Stopped',
  ),
  change(
    'disk-sleep-is-stopped',
    'native/process.cc',
    'native',
    'letter == "T" ? ProcessState::Stopped',
    '(letter == "T" || letter == "D") ? ProcessState::Stopped',
  ),
  change(
    'descriptor-index',
    'native/nvlist.cc',
    'wire',
    'data.size() == 8 && pair.scalar < descriptors',
    'data.size() == 8 && pair.scalar <= descriptors',
  ),
  change('name-length', 'native/nvlist.cc', 'wire', ' || nameSize > kNameMax', ''),
  change(
    'announced-descriptors',
    'native/nvlist.cc',
    'wire',
    'if (countDescriptors(pairs) != announced)\n    return std::nullopt;\n',
    '',
  ),
]

/** Makes the change in the copy of the project at `root`, and builds it. Returns a function that undoes it. */
export function apply(root, { id, file, from, to }) {
  const source = path.join(root, file)
  const before = fs.readFileSync(source, 'utf8')
  const [head, ...rest] = before.split(from)
  if (rest.length !== 1) throw new Error(`${id}: '${from}' occurs ${rest.length} times in ${file}`)
  const after = head + to + rest[0]
  return file.startsWith('lib/') ? applyScript(root, file, after) : applyNative(root, source, before, after)
}

function applyScript(root, file, after) {
  const { config } = ts.readConfigFile(path.join(root, 'tsconfig.json'), ts.sys.readFile)
  const { options } = ts.convertCompilerOptionsFromJson({ ...config.compilerOptions, module: 'ESNext' }, root)
  const target = path.join(root, file.replace(/^lib/, 'dist').replace(/ts$/, 'js'))
  const original = fs.readFileSync(target)
  fs.writeFileSync(target, ts.transpileModule(after, { compilerOptions: options, fileName: file }).outputText)
  return () => fs.writeFileSync(target, original)
}

function applyNative(root, source, before, after) {
  fs.writeFileSync(source, after)
  build(root)
  return () => {
    fs.writeFileSync(source, before)
    build(root)
  }
}

function build(root) {
  const { status, stdout, stderr } = spawnSync('npx', ['cmake-js', 'compile'], {
    cwd: root,
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(`the addon does not compile: ${stdout}${stderr}`)
}
