// Fields for a time: the reader sees and types the time of their own zone, and forms send UTC, as they do without this
// script. So the server need not know the zone.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });

const two = (number) => String(number).padStart(2, "0");
const seconds = (text) => (text.endsWith(":00") ? text.slice(0, -3) : text);
const toUtc = (local) => {
  const at = new Date(local);
  return Number.isNaN(at.getTime()) ? "" : seconds(at.toISOString().slice(0, 19));
};
const toLocal = (utc) => {
  const at = new Date(`${utc}Z`);
  if (Number.isNaN(at.getTime())) return "";
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return seconds(`${day}T${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`);
};
// What was not changed is sent as it came: in the hour that clocks show twice, the local time alone is not enough.
const utcOf = (input) => (input.value === toLocal(input.defaultValue) ? seconds(input.defaultValue) : toUtc(input.value));
const say = (input) => {
  const at = new Date(input.value);
  const utc = Number.isNaN(at.getTime()) ? "" : `${exact.format(at)}, which is ${utcOf(input).replace("T", " ")} UTC.`;
  input.closest(".field").querySelector("[data-moment-said]").textContent = utc;
};

// First, so that local times are never sent as UTC, whatever fails afterwards.
document.addEventListener("formdata", ({ target, formData }) => {
  for (const input of target.querySelectorAll("input[data-moment][data-local]")) formData.set(input.name, utcOf(input));
});
const prepare = () => {
  for (const input of document.querySelectorAll("input[data-moment]:not([data-local])")) {
    // The attribute has what the server wrote. The value may be one that the browser remembers from before: a local time.
    input.value = toLocal(input.defaultValue);
    input.dataset.local = zone;
    input.closest(".field").querySelector("[data-zone-name]").textContent = `in ${zone}`;
    input.addEventListener("input", () => say(input));
    say(input);
  }
};
prepare();
// A part of the page that was renewed has new fields, and is not renewed while its form is open.
document.addEventListener("toggle", prepare, { capture: true });
