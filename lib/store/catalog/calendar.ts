/** Names for the hour, day, ISO week and month of a date, in the local time zone of the process. */

export function monthOf(date: Date): string {
  return `${String(date.getFullYear())}-${String(date.getMonth() + 1)}`
}

export function dayOf(date: Date): string {
  return `${monthOf(date)}-${String(date.getDate())}`
}

export function hourOf(date: Date): string {
  return `${dayOf(date)}T${String(date.getHours())}`
}

/** A week is named after its Monday. */
export function weekOf(date: Date): string {
  const sinceMonday = (date.getDay() + 6) % 7
  // At noon, because in some time zones midnight does not exist on the day when daylight saving time begins.
  return dayOf(new Date(date.getFullYear(), date.getMonth(), date.getDate() - sinceMonday, 12))
}
