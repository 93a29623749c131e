/** The environment variables and the configuration file, for the manual page. */

export const environmentVariables: Readonly<Record<string, string>> = {
  BHYVE_CHECKPOINT_DIRECTORY: 'The checkpoint directory, unless --checkpoint-directory is given',
  BHYVE_RUN_DIRECTORY: "The directory of bhyve's sockets, unless --run-directory is given",
  BHYVE_MEMORY_STAGE:
    'The memory stage of create: a directory on a tmpfs, or none, unless --memory-stage is given',
  cbsd_workdir: 'The work directory of CBSD, unless --cbsd names one',
  BHYVE_CHECKPOINT_ADDON: "The path of the library's addon, if it is not that of the package",
  NODE_DEBUG: 'With the value bhyve-checkpoint, each decision about a VM is logged to standard error',
  NO_COLOR: 'If it is not empty, the output has no colors',
  TZ: 'The time zone of times in the output, and of the calendar rules of prune',
}

export const configurationFile = '/usr/local/etc/bhyve-checkpoint.conf'

export const configurationKeys: Readonly<Record<string, string>> = {
  checkpoint_directory: 'The checkpoint directory',
  run_directory: "The directory of bhyve's sockets",
  cbsd_workdir: 'The work directory of CBSD, whose checkpoint directories --cbsd uses',
  memory_stage: 'The memory stage of create: a directory on a tmpfs, or none',
}
