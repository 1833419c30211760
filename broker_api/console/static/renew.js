// Renews the parts of a page that are marked by `data-live`, every few seconds, from the page itself. It does so each
// second while the page has an element `data-often`, and no more once it has one with `data-final`.
import { showTimes } from "./times.js";

const EVERY_MS = 5000;
const OFTEN_MS = 1000;

function isInUse(part) {
  // A link, too: the focus would fall to the top of the page.
  if (part.contains(document.activeElement)) return true;
  if (part.querySelector("details.typed[open], input:checked")) return true;
  const selection = getSelection();
  return !selection.isCollapsed && part.contains(selection.anchorNode);
}

async function renew() {
  const answer = await fetch(location.href, { headers: { "X-Renew": "1" } });
  // Signed out: the page itself leads to where one signs in, and says why.
  if (answer.status === 401) return location.replace(location.href);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (document.querySelector("[data-reload]") && answer.ok) return location.replace(location.href);
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
    if (other === null || isInUse(part)) continue;
    const open = [...part.querySelectorAll("details[open][id]")].map((each) => each.id);
    for (const id of open) other.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", "");
    showTimes(other);
    if (other.innerHTML === part.innerHTML) continue;
    const scrolled = [...part.querySelectorAll(".table-responsive")].map((each) => each.scrollLeft);
    part.replaceChildren(...other.childNodes);
    part.querySelectorAll(".table-responsive").forEach((each, number) => { each.scrollLeft = scrolled[number] ?? 0; });
  }
  if (answer.ok) {
    document.querySelector("[data-freshness]").replaceWith(fresh.querySelector("[data-freshness]"));
    showTimes(document.querySelector("[data-freshness]"));
  }
}

export function renewPage() {
  if (document.querySelector("[data-live]") === null) return;
  const again = async () => {
    try {
      if (!document.hidden) await renew();
    } catch {
      // The console itself is away. What is shown has its age, and the next try comes.
      document.querySelector("[data-freshness]").classList.add("text-danger");
    }
    plan();
  };
  const plan = () => {
    if (document.querySelector("[data-final]")) return;
    setTimeout(again, document.querySelector("[data-often]") ? OFTEN_MS : EVERY_MS);
  };
  plan();
}
