// The keys. Those of one letter count only while the picture has the focus, so that they hinder no screen reader.

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Listen for undo and redo everywhere, except where text is typed: there they are the browser's own. */
export function followShortcuts(commands) {
  addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=text], input[type=password]")) return;
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key === "z" && !event.shiftKey) commands.undo();
    else if ((key === "z" && event.shiftKey) || key === "y") commands.redo();
    else return;
    event.preventDefault();
  });
}

/** Let the keys work the picture: `commands` has one function for each thing that they do. */
export function followKeys(canvas, commands) {
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey) return;
    const step = ARROWS[event.key];
    // A key held down moves on, and does nothing else twice.
    if (event.repeat && !step) return;
    if (step) commands.moveCrosshair(step[0], step[1], event.shiftKey);
    else if (event.key === "Enter") commands.pointAtCrosshair(!(event.shiftKey || event.altKey));
    else if (event.key === "b" || event.key === "B") commands.boxAtCrosshair();
    else if (event.key === "Escape") commands.giveUpBox();
    else if (event.key === "n" || event.key === "N") commands.newThing();
    else if (event.key === "Delete" || event.key === "Backspace") commands.removeActive();
    else if (event.key >= "1" && event.key <= "3") commands.choose(Number(event.key) - 1);
    else if (event.key === "+" || event.key === "=") commands.zoom(1.25);
    else if (event.key === "-") commands.zoom(0.8);
    else if (event.key === "0") commands.fit();
    else return;
    event.preventDefault();
  });
}
