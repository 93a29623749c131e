/** The arguments that a checkpoint records, for a restore. Runs in the pool. */
import fs from 'node:fs'
import { manifestSuffix } from '../../base/names.js'
import { recordedArgumentsOf } from '../../checkpoint/describe.js'
import { manifestOfHead, readHeadOf } from '../../checkpoint/manifest_file.js'
import { inspectUnchanged, notFound } from '../../checkpoint/read.js'
import type { RecordedArguments } from '../../checkpoint/recorded_arguments.js'
import { Directory } from '../../fs/directory.js'
import { lockForReading } from './list.js'
import { distrustOf } from './manifest_trust.js'

/** `identity`: of the checkpoint. It changes when another checkpoint replaces this one. */
export type FoundArguments =
  { recorded: RecordedArguments; identity: string } | { fault: string; path: string } | undefined

/** Undefined if no arguments are recorded. `fault`: why they must not be used. */
export function readRecordedArguments(directoryPath: string, vm: string, name: string): FoundArguments {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  using _lock = lockForReading(directory)
  const inspection = inspectUnchanged(directory, name)
  if (inspection === undefined) throw notFound(directoryPath, name)
  if (recordedArgumentsOf(inspection) === undefined) return undefined
  using file = directory.openFileIfAny(name + manifestSuffix, fs.constants.O_RDONLY)
  if (file === undefined) return undefined
  // Check the open file and read from it, because its name can be replaced at any time.
  const status = file.status()
  const head = readHeadOf(file, status.size)
  const manifest = head && manifestOfHead(head, status.size)?.manifest
  if (manifest?.arguments === undefined || manifest.id !== inspection.manifest?.id) return undefined
  const fault = distrustOf(status) ?? (manifest.vm === vm ? undefined : `they are of VM '${manifest.vm}'`)
  if (fault !== undefined) return { fault, path: file.path }
  return { recorded: manifest.arguments, identity: inspection.identity }
}
