// Renews the parts of a page that are marked by `data-live`, every few seconds, from the page itself. It does so each
// second while the page has an element `data-often`, and no more once it has one with `data-final`.
import { showTimes } from "./times.js";

const EVERY_MS = 5000;
const OFTEN_MS = 1000;

function isInUse(part) {
  const focused = document.activeElement;
  if (part.contains(focused) && focused.matches("input, select, textarea, button, summary")) return true;
  // Between the press of a mouse and its release: a new element in its place would not take the click.
  if (part.matches(":active")) return true;
  if (part.querySelector("details.typed[open], input:checked")) return true;
  const selection = getSelection();
  return !selection.isCollapsed && part.contains(selection.anchorNode);
}

// How to find an element again among the new ones: by its id, its address, or its place.
function findAgain(part, element) {
  const same = element.id ? `#${CSS.escape(element.id)}`
    : element.hasAttribute("href") ? `a[href="${CSS.escape(element.getAttribute("href"))}"]` : "[tabindex]";
  const place = [...part.querySelectorAll(same)].indexOf(element);
  return () => part.querySelectorAll(same)[place];
}

// The reader keeps the focus, and how far they have scrolled a wide table sideways.
function replace(part, other) {
  const focused = part.contains(document.activeElement) && part !== document.activeElement ? findAgain(part, document.activeElement) : null;
  const scrolled = [...part.querySelectorAll(".table-responsive")].map((each) => each.scrollLeft);
  part.replaceChildren(...other.childNodes);
  part.querySelectorAll(".table-responsive").forEach((each, place) => { each.scrollLeft = scrolled[place] ?? 0; });
  focused?.()?.focus({ preventScroll: true });
}

function hasTyped() {
  return [...document.querySelectorAll("main form :is(input:not([type=hidden]), textarea, select)")].some((each) =>
    each.matches("select") ? [...each.options].some((option) => option.selected !== option.defaultSelected)
      : each.value !== each.defaultValue || each.checked !== (each.defaultChecked ?? each.checked));
}

// Signed out: the page itself leads to where one signs in, and says why. But what was typed stays, to be copied.
function leave() {
  const note = document.querySelector("[data-signed-out]");
  if (hasTyped()) note.hidden = false;
  else location.replace(location.href);
}

async function renew() {
  const answer = await fetch(location.href, { headers: { "X-Renew": "1" } });
  if (answer.status === 401) return leave();
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  // By its address, because the browser would send a form again.
  if (document.querySelector("[data-reload]") && answer.ok) return location.replace(location.href);
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
    if (other === null || isInUse(part)) continue;
    const open = [...part.querySelectorAll("details[open][id]")].map((each) => each.id);
    for (const id of open) other.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", "");
    showTimes(other);
    if (other.innerHTML !== part.innerHTML) replace(part, other);
  }
  if (answer.ok) {
    document.querySelector("[data-freshness]").replaceWith(fresh.querySelector("[data-freshness]"));
    showTimes(document.querySelector("[data-freshness]"));
  }
}

// Source: WCAG 2.2, 2.2.2 "Pause, Stop, Hide".
function offerPause() {
  const button = document.querySelector("[data-pause]");
  let isPaused = false;
  button.hidden = false;
  button.addEventListener("click", () => {
    isPaused = !isPaused;
    button.textContent = isPaused ? "Renew this page again" : "Stop renewing this page";
  });
  return () => isPaused;
}

// A page that has only the place of the banner does not renew itself: a report takes the API long, and a form has nothing new.
const LIVE = '[data-live]:not([data-live="trouble"])';

export function renewPage() {
  if (document.querySelector(LIVE) === null) return;
  const isPaused = offerPause();
  const again = async () => {
    try {
      if (!document.hidden && !isPaused()) await renew();
    } catch {
      // The console itself is away. What is shown has its age, and the next try comes.
      document.querySelector("[data-freshness]").classList.add("text-danger");
    }
    plan();
  };
  const plan = () => {
    if (document.querySelector("[data-final], [data-signed-out]:not([hidden])")) return;
    setTimeout(again, document.querySelector("[data-often]") ? OFTEN_MS : EVERY_MS);
  };
  plan();
}
