"""Everything that touches ComfyUI's own modules, through its official extension points only."""
