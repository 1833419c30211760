// Turns the times of a page, which the server writes in UTC, into the reader's zone. The exact time in UTC stays on hover.
const sameDay = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const otherDay = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });

export function showTimes(part) {
  // Marks on an axis, which have little room.
  for (const element of part.querySelectorAll("[data-clock]")) element.textContent = clock.format(new Date(element.dataset.clock));
  const today = new Date().toDateString();
  for (const element of part.querySelectorAll("time:not([data-relative])")) {
    const at = new Date(element.dateTime);
    element.textContent = (at.toDateString() === today ? sameDay : otherDay).format(at);
  }
}
