// Light or dark: the system's choice, until the button is used.

const NAME = "samovar-theme";

export function followTheme(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const stored = localStorage.getItem(NAME);
  if (stored) root.dataset.theme = stored;
  button.addEventListener("click", () => {
    const isDark = (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
    root.dataset.theme = isDark ? "light" : "dark";
    localStorage.setItem(NAME, root.dataset.theme);
  });
}
