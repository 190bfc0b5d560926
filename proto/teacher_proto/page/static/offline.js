// The page without a server: draws the document that the page itself holds.
import { look } from "./view/look.js";

look(document.getElementById("look"), JSON.parse(document.getElementById("rows").textContent));
