// Chooses all sandboxes of the page, and says how many are chosen. Without it, each is chosen by its box.
const boxes = () => [...document.querySelectorAll('input[name="chosen"]')];
const all = document.querySelector("[data-choose-all]");
const count = document.querySelector("[data-chosen-count]");

if (all !== null) {
  const show = () => {
    const chosen = boxes().filter((box) => box.checked).length;
    count.textContent = chosen === 0 ? "" : `${chosen} chosen`;
    all.textContent = chosen > 0 && chosen === boxes().length ? "Choose none" : "Choose all on this page";
  };
  all.hidden = false;
  all.addEventListener("click", () => {
    const wanted = boxes().some((box) => !box.checked);
    for (const box of boxes()) box.checked = wanted;
    show();
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches('input[name="chosen"]')) show();
  });
  show();
}
